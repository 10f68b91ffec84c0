"""What files say reaches a terminal as text, never as its commands."""

import pandas as pd
import pytest

import lazypert as lp
from lazypert._cli import main
from lazypert._cli.output import printable
from tests.support.stores import screen, write

ODD = "TP53\x1b[31m\x07\u202e\x9b2J"


def test_control_characters_are_escaped_and_letters_kept():
    assert printable("é漢\n" + ODD) == "é漢\nTP53\\x1b[31m\\x07\\u202e\\x9b2J"


@pytest.mark.parametrize("command", ["info", "convert"])
def test_labels_cannot_command_a_terminal(tmp_path, capsys, command):
    adata = screen(30, lean=True)
    adata.obs["perturbation"] = pd.Categorical(["NT\x1b[2J", ODD, "a\nb"] * 10)
    adata.obs[f"col{ODD}"] = range(30)
    path = write(adata, tmp_path / f"s{ODD}.h5ad")
    if command == "info":
        store = lp.convert(path, tmp_path / "a.zarr", pert_col="perturbation", control_pert="NT\x1b[2J")
        assert main(["info", str(store)]) == 0
    else:
        assert main(["convert", str(path), str(tmp_path / "b.zarr"), "--pert-col", f"no\x1b[2J{ODD}"]) == 1
    said = capsys.readouterr()
    text = said.out + said.err
    assert "\\x1b[" in text
    assert not [char for char in text if not char.isprintable() and char != "\n"]
