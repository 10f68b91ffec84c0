import io

import pytest

from lazypert import progress
from lazypert.progress import Bar, Phase, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_phase_tells_every_step():
    seen = []
    phase = Phase("X: writing shards", 2, seen.append)
    phase.step(10)
    phase.step(5)
    assert [(p.phase, p.done, p.total, p.n_bytes) for p in seen] == [
        ("X: writing shards", 0, 2, 0), ("X: writing shards", 1, 2, 10), ("X: writing shards", 2, 2, 15),
    ]  # fmt: skip
    assert seen[0].seconds <= seen[1].seconds <= seen[2].seconds
    Phase("quiet", 1, None).step(1)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_on_a_terminal_only(monkeypatch, terminal):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    file = Terminal() if terminal else io.StringIO()
    with Bar(file) as bar:
        bar(Progress("reading", 1, 4, 3_000_000, 1.0))
        bar(Progress("writing", 2, 4, 5_000_000, 2.0))
        bar(Progress("writing", 4, 4, 8_000_000, 2.0))
    said = file.getvalue()
    if not terminal:
        assert said == ""
        return
    for part in ("reading", "writing", "100%", "8 MB", "4 MB/s"):
        assert part in said


def test_a_short_job_shows_none(monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 60.0)
    file = Terminal()
    with Bar(file) as bar:
        bar(Progress("reading", 1, 1, 1, 1.0))
    assert file.getvalue() == ""
