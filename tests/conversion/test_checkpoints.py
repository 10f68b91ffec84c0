"""Checkpoints appear complete or not at all."""

from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint
from tests.support.stores import leftovers


def test_a_checkpoint_is_complete_or_absent(tmp_path):
    path = tmp_path / "a.json"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"n": 1})
    save_checkpoint(path, {"n": 2})
    assert load_checkpoint(path) == {"n": 2}
    for truncated in ("", '{"n": ', "[1]", "\x00" * 8):
        path.write_text(truncated)
        assert load_checkpoint(path) is None
    assert leftovers(tmp_path) == ["a.json"]
