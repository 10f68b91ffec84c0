import errno
import sys

import pytest

import lazypert as lp
from lazypert._cli import main
from lazypert.simulate import reference_screen
from tests.support.cli import ALL_ROLES, ROLES, fields


def test_convert_writes_a_store_and_prints_a_summary(screen, tmp_path, capsys):
    assert main(["convert", str(screen), str(tmp_path / "s.zarr"), *ALL_ROLES]) == 0
    printed = capsys.readouterr()
    assert printed.err == "", "no progress bar unless stderr is a terminal"
    summary = fields(printed.out)
    assert summary["cells"] == "900"
    assert summary["genes"] == "200"
    assert int(summary["nonzeros"].replace(",", "")) > 170_000
    assert summary["groups"] == "18"
    assert "iB, converted from " in summary["size"]
    assert summary["size"].endswith("iB")
    assert summary["time"].endswith(" s")
    assert summary["peak memory"].endswith("iB")


def test_convert_shows_progress_on_a_terminal(screen, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("lazypert.progress._DELAY", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["convert", str(screen), str(tmp_path / "s.zarr"), *ALL_ROLES]) == 0
    printed = capsys.readouterr()
    assert "X: writing shards" in printed.err
    assert "MB" in printed.err
    assert "\x1b" not in printed.out, "the summary is plain text"


def test_convert_accepts_several_files_and_all_options(screen, tmp_path, capsys):
    other = reference_screen(tmp_path / "other.h5ad", seed=1)
    options = ["--join", "outer", "--order", "source", "--seed", "3", "--memory-limit", "200MB", "--overwrite"]
    target = tmp_path / "both.zarr"
    target.mkdir()
    with pytest.warns(FutureWarning, match="seed: got 3"):
        assert main(["convert", str(screen), str(other), str(target), *ALL_ROLES, *options]) == 0
    assert fields(capsys.readouterr().out)["cells"] == "1,800"
    assert main(["info", str(target)]) == 0
    printed = capsys.readouterr().out
    assert fields(printed)["order"] == "source"
    assert printed.count("\nsource  ") == 2


def test_convert_to_a_compact_store(screen, tmp_path, capsys):
    assert main(["convert", str(screen), str(tmp_path / "s.zarr"), *ALL_ROLES, "--compression", "compact"]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "s.zarr")]) == 0
    assert fields(capsys.readouterr().out)["compression"] == "compact"


@pytest.mark.parametrize(
    ("given", "expected"),
    [(["MYC=KRAS", "TP53=a=b"], {"MYC": "KRAS", "TP53": "a=b"}), (["strip"], "strip")],
)
def test_convert_merges_spellings(screen, tmp_path, given, expected):
    options = [word for text in given for word in ("--rename-perturbations", text)]
    assert main(["convert", str(screen), str(tmp_path / "s.zarr"), *ALL_ROLES, *options]) == 0
    assert lp.open(tmp_path / "s.zarr").pert.store.roles.to_json()["rename_perturbations"] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pert-col", "pertubation", "--control-pert", "non-targeting"), "Did you mean 'perturbation'?"),
        (("--pert-col", "perturbation", "--control-pert", "nontargeting"), "Did you mean 'non-targeting'?"),
        ((*ROLES, "--layer", "counts"), "layer: got 'counts', expected a layer of"),
        ((*ROLES, "--rename-perturbations", "MYC"), "--rename-perturbations: got 'MYC', expected LABEL=NAME"),
        ((*ROLES, "--rename-perturbations", "A=B", "--rename-perturbations", "A=C"), "got 'A=C', expected LABEL=NAME"),
        ((*ROLES, "--rename-perturbations", "MYCC=MYC"), "rename_perturbations: got 'MYCC', expected a label"),
        ((*ROLES, "--memory-limit", "lots"), "memory_limit: got 'lots', expected a size in bytes"),
        ((*ROLES, "--memory-limit", "1KB"), "memory_limit: got '1KB' (1000 B), expected at least 64.0 MiB"),
    ],
    ids=["column", "label", "layer", "no name", "two names", "name of nothing", "size", "limit"],
)
def test_a_refused_conversion_prints_one_message_and_leaves_no_store(screen, tmp_path, capsys, options, message):
    assert main(["convert", str(screen), str(tmp_path / "s.zarr"), *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("lazypert: error: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"not an h5ad at all", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_not_a_screen_is_refused(tmp_path, capsys, content):
    file = tmp_path / "bad.h5ad"
    if content is not None:
        file.write_bytes(content)
    assert main(["convert", str(file), str(tmp_path / "s.zarr"), *ROLES]) == 1
    assert capsys.readouterr().err.startswith("lazypert: error: ")
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.h5ad"}


def test_an_existing_store_is_replaced_only_with_overwrite(screen, store, tmp_path, capsys):
    before = (store / "zarr.json").read_bytes()
    assert main(["convert", str(screen), str(store), *ALL_ROLES]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (store / "zarr.json").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "lazypert: interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device", "s.zarr"), 1, "run the same conversion again"),
    ],
    ids=["ctrl-c", "disk-full"],
)
def test_an_interrupted_conversion_leaves_no_store_and_resumes(
    screen, tmp_path, capsys, monkeypatch, error, status, message
):
    def fail(*_, **__):
        raise error

    command = ["convert", str(screen), str(tmp_path / "s.zarr"), *ALL_ROLES]
    with monkeypatch.context() as patch:
        patch.setattr("lazypert.conversion.convert.write_tables", fail)  # late: the matrix is written already
        assert main(command) == status
    err = capsys.readouterr().err
    assert message in err
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("s.zarr.partial-")
    assert kept.name in err
    assert main(command) == 0
    assert "resuming an interrupted conversion" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]
    assert main(["verify", str(tmp_path / "s.zarr")]) == 0


def test_verify_counts_files_or_lists_damaged_ones(screen, tmp_path, capsys):
    target = tmp_path / "s.zarr"
    assert main(["convert", str(screen), str(target), *ALL_ROLES]) == 0
    capsys.readouterr()
    assert main(["verify", str(target)]) == 0
    assert capsys.readouterr().out.startswith("ok: ")
    shard = target / "X" / "data" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["verify", str(target)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "is damaged" in printed.err
    assert "X/data/c/0: its bytes changed" in printed.err


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_missing_store_is_an_error(command, tmp_path, capsys):
    assert main([command, str(tmp_path / "none.zarr")]) == 1
    assert capsys.readouterr().err.startswith("lazypert: error: There is no store at ")


def test_append_adds_the_cells_of_files(screen, tmp_path, capsys):
    store, other = tmp_path / "s.zarr", reference_screen(tmp_path / "other.h5ad", seed=1)
    assert main(["convert", str(screen), str(store), *ALL_ROLES]) == 0
    capsys.readouterr()
    command = ["append", str(store), str(other), "--dataset", "second", "--genes", "store", "--memory-limit", "200MB"]
    assert main(command) == 0
    assert fields(capsys.readouterr().out)["cells"] == "1,800"
    assert main(command) == 1
    assert "They are in it already" in capsys.readouterr().err
    assert main(["verify", str(store)]) == 0
    assert main(["append", "https://example.com/s.zarr", str(other)]) == 1
    assert "cannot be written over HTTP" in capsys.readouterr().err


def test_add_obs_adds_columns_of_a_file(screen, tmp_path, capsys):
    store, table = tmp_path / "s.zarr", tmp_path / "calls.csv"
    assert main(["convert", str(screen), str(store), *ALL_ROLES]) == 0
    names = lp.open(store).cell_name.values
    lines = [f"{name},g{number % 3},{number}" for number, name in enumerate(names)]
    table.write_text("\n".join(["cell_barcode,guide,n", *lines[:-1], "stranger,g0,0"]))
    capsys.readouterr()
    assert main(["add-obs", str(store), str(table), "--column", "guide"]) == 1
    assert "'stranger'" in capsys.readouterr().err
    assert main(["add-obs", str(store), str(table), "--column", "guide", "--ignore-unknown"]) == 0
    printed = fields(capsys.readouterr().out)
    assert printed["obs"].split(", ")[-1] == "guide"
    assert "1 of the store's 900 cells" in printed["warning"]
    assert main(["add-obs", str(store), str(table), "--ignore-unknown"]) == 1
    assert "overwrite=True" in capsys.readouterr().err
    assert main(["add-obs", str(store), str(table), "--ignore-unknown", "--overwrite"]) == 0
    assert list(lp.open(store).n.values[:-1]) == list(range(899))
    assert main(["verify", str(store)]) == 0
