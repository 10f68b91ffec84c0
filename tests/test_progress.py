import io
import os
import sys
import warnings

import pytest

from lazypert import progress
from lazypert.progress import Bar, Phase, Progress

JOB = """
import sys, time, warnings
{setup}
from lazypert.progress import Bar, Phase
with warnings.catch_warnings(action="error"), Bar() as bar:
    time.sleep(1.1)
    reading = Phase("X: reading and sorting", 2, bar)
    reading.step(4_000_000)
    reading.step(4_000_000)
    writing = Phase("X: writing shards", 4, bar)
    for _ in range({n_steps}):
        time.sleep(0.15)
        writing.step(4_000_000)
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_phase_reports_every_step():
    seen = []
    phase = Phase("X: writing shards", 2, seen.append)
    phase.step(10)
    phase.step(5)
    assert [(p.phase, p.done, p.total, p.n_bytes) for p in seen] == [
        ("X: writing shards", 0, 2, 0), ("X: writing shards", 1, 2, 10), ("X: writing shards", 2, 2, 15),
    ]  # fmt: skip
    assert seen[0].seconds <= seen[1].seconds <= seen[2].seconds
    Phase("quiet", 1, None).step(1)


def test_a_phase_and_a_bar_have_short_reprs():
    phase = Phase("X: writing shards", 2, None)
    phase.step(1)
    assert repr(phase) == "<Phase 'X: writing shards': 1 of 2 tasks>"
    assert repr(Bar(Terminal())) == "<Bar: not started>"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_appears_only_on_a_terminal(monkeypatch, terminal):
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    file = Terminal() if terminal else io.StringIO()
    with Bar(file) as bar:
        bar(Progress("reading", 1, 4, 3_000_000, 1.0))
        bar(Progress("writing", 2, 4, 5_000_000, 2.0))
        bar(Progress("writing", 4, 4, 8_000_000, 2.0))
    printed = file.getvalue()
    if not terminal:
        assert printed == ""
        return
    for text in ("reading", "writing", "100%", "8 MB", "4 MB/s"):
        assert text in printed
    assert printed.rpartition("\r")[0].rstrip(" ").endswith("\r"), "the bar is erased at the end"


def test_a_bar_estimates_the_remaining_time_from_the_whole_phase(monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    file = Terminal()
    with Bar(file) as bar:
        bar(Progress("writing", 30, 40, 1, 60.0))
        bar(Progress("writing", 40, 40, 1, 60.0))
    assert " 75% |" in file.getvalue()
    assert "00:20 left, " in file.getvalue()


def test_a_short_job_shows_no_bar(monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 60.0)
    file = Terminal()
    with Bar(file) as bar:
        bar(Progress("reading", 1, 1, 1, 1.0))
    assert file.getvalue() == ""


def run_notebook(code):
    """Execute a notebook of one cell in a real Jupyter kernel, and return the executed notebook."""
    for name in ("ipykernel", "ipywidgets", "nbclient"):
        pytest.importorskip(name, reason=f"needs {name}, of the `integration` extra")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's own
        import nbclient
        import nbformat

        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3")
        return client.execute(env=environment)


def widget_texts(notebook):
    states = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    return " ".join(str(state["state"].get("value", "")) for state in states).replace("\u2007", " ")


@pytest.mark.slow
def test_a_bar_appears_as_a_widget_in_a_notebook():
    notebook = run_notebook(JOB.format(setup="", n_steps=3))
    (output,) = notebook.cells[0].outputs
    assert output["output_type"] == "display_data"
    assert "application/vnd.jupyter.widget-view+json" in output["data"]
    assert "X: reading and sorting" in output["data"]["text/plain"]
    texts = widget_texts(notebook)
    assert "X: writing shards:  75%" in texts
    assert " left, 12 MB, " in texts
    assert " MB/s" in texts


@pytest.mark.slow
def test_a_bar_appears_as_text_in_a_notebook_without_ipywidgets():
    notebook = run_notebook(JOB.format(setup="sys.modules['ipywidgets'] = None", n_steps=4))
    assert {output["name"] for output in notebook.cells[0].outputs} == {"stderr"}
    text = "".join(output["text"] for output in notebook.cells[0].outputs)
    assert "X: writing shards: 100% |" in text
    assert "16 MB" in text
    assert "arning" not in text


@pytest.mark.slow
def test_a_short_job_in_a_notebook_shows_no_bar():
    notebook = run_notebook(JOB.replace("1.1", "0.0").format(setup="", n_steps=1))
    assert notebook.cells[0].outputs == []
