"""HDF5 files: links, virtual datasets and filters are followed or named, and damage is one clear error."""

import gzip

import h5py
import numpy as np
import pytest

import lazypert as lp
from tests.support.conversions import (
    assert_command_refuses,
    assert_converted,
    assert_refused,
    run_command,
    write_changed,
)
from tests.support.h5changes import as_type, broken_link, compressed, latin1, loop, plugin, unwritten
from tests.support.h5files import write_base
from tests.support.oracles import assert_equal, read_with_anndata
from tests.support.sampling import sampled
from tests.support.stores import (
    leftovers,
)


def linked(kind):
    """X lies elsewhere, and is there."""

    def change(file):
        other = f"{file.filename}.other"
        with h5py.File(other, "w") as far:
            file.copy("X", far)
        if kind == "external":
            del file["X"]
            file["X"] = h5py.ExternalLink(other, "/X")
        elif kind == "soft":
            file.create_group("uns")
            file.move("X", "uns/matrix")
            file["X"] = h5py.SoftLink("/uns/matrix")
        else:
            view(file, other, file["X/data"].shape[0])

    return change


def view(file, other, n, name="X/data", shown=None, far_name=None):
    """A dataset becomes a view of one in another file."""
    dtype, whole = file[name].dtype, file[name].shape
    layout = h5py.VirtualLayout(whole, dtype)
    layout[: n if shown is None else shown] = h5py.VirtualSource(other, far_name or name, (n,), dtype)[:shown]
    del file[name]
    file.create_virtual_dataset(name, layout)


def gone_view(**options):
    return lambda file: view(file, "gone.h5", file["X/data"].shape[0], **options)


def other_view(**options):
    """A view of a file that is there, of values that are not."""

    def change(file):
        n = file["X/data"].shape[0]
        with h5py.File(f"{file.filename}.other", "w") as far:
            far["X/data"] = np.ones(n - 1, "f4")
        view(file, f"{file.filename}.other", n, **options)

    return change


def outside(file):
    """Values in a file without a format, which is too short."""
    n = file["X/data"].shape[0]
    del file["X/data"]
    file["X"].create_dataset("data", (n,), "f4", external=[(f"{file.filename}.raw", 0, 4 * n)])


CONVERTED = {
    "fixed_length_text": as_type("obs/note", h5py.string_dtype(length=5)),
    "fixed_length_index": as_type("obs/_index", "S5"),
    "text_marked_ascii": as_type("obs/_index", h5py.string_dtype("ascii")),
    "gzip": compressed(compression="gzip", shuffle=True, fletcher32=True),
    "lzf": compressed(compression="lzf"),
    "blosc": plugin("Blosc"),
    "zstd": plugin("Zstd"),
    "lz4": plugin("LZ4"),
    "bitshuffle": plugin("Bitshuffle"),
    "link_inside": linked("soft"),
    "link_to_another_file": linked("external"),
    "view_of_another_file": linked("view"),
}


@pytest.mark.parametrize("case", sampled(CONVERTED))
def test_odd_hdf5_files_are_converted_exactly(tmp_path, case):
    assert_converted(tmp_path / "odd.h5ad", CONVERTED[case])


REFUSED = {
    "x_linked_to_a_lost_file": (
        broken_link("X", h5py.ExternalLink("gone.h5", "/X")),
        "'X'.*'gone.h5', which does not exist",
    ),
    "x_linked_to_nowhere": (broken_link("X", h5py.SoftLink("/gone")), "'X'.*'/gone', which does not exist"),
    "x_linked_to_itself": (loop("X"), "'X'.*leads back to itself"),
    "column_linked_to_nowhere": (broken_link("obs/n", h5py.SoftLink("/gone")), "'obs/n'.*'/gone'"),
    "layer_linked_to_nowhere": (broken_link("layers/double", h5py.SoftLink("/gone")), "'layers/double'.*'/gone'"),
    "obsm_linked_to_a_lost_file": (
        broken_link("obsm/X_pca", h5py.ExternalLink("gone.h5", "a")),
        "'obsm/X_pca'.*gone.h5",
    ),
    "view_of_a_lost_file": (gone_view(), "'X/data'.*gone.h5' does not exist"),
    "view_with_gaps": (
        lambda f: [
            linked("view")(f),
            f.pop("X/data"),
            f.copy("layers/double/data", "X/data"),
            view(f, f"{f.filename}.other", 5, shown=5),
        ],
        r"'X/data'.*only 5 of its \d+ values",
    ),
    "view_of_too_little": (other_view(), "'X/data'.*does not contain the selection"),
    "view_of_a_lost_array": (other_view(far_name="lost"), "'X/data'.*'lost' is not a dataset of"),
    "values_outside": (outside, r"'X/data'.*odd.h5ad.raw"),
    "data_never_written": (unwritten("X/data"), "'X/data'.*never written from element 0"),
    "indices_never_written": (unwritten("X/indices"), "'X/indices'.*never written from element 0"),
    "latin1_names": (latin1("obs/_index"), "'obs/_index'.*not UTF-8"),
    "latin1_column": (latin1("obs/note"), "'obs/note'.*not UTF-8"),
    "latin1_categories": (latin1("obs/perturbation/categories"), "'obs/perturbation/categories'.*not UTF-8"),
    "latin1_genes": (latin1("var/_index"), "'var/_index'.*not UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_hdf5_files_are_refused_with_one_clear_error(tmp_path, capsys, case):
    change, says = REFUSED[case]
    path, written = write_changed(tmp_path / "odd.h5ad", change)
    assert_refused(path, says, capsys, written=written)


def truncated(path, good):
    path.write_bytes(good[: len(good) // 2])


def last_chunk_damaged(path, _):
    write_base(path, compressed(compression="gzip"))
    with h5py.File(path) as file:
        node = file["X/data"].id
        chunk = node.get_chunk_info(node.get_num_chunks() - 1)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(data)


CUT_SHORT = "cut short, incomplete or damaged"
NOT_HDF5 = {
    "truncated": (truncated, CUT_SHORT),
    "only_a_signature": (lambda path, good: path.write_bytes(good[:8]), CUT_SHORT),
    "empty": (lambda path, _: path.write_bytes(b""), "is empty"),
    "web_page": (lambda path, _: path.write_text("<!DOCTYPE html><html>404"), "web page"),
    "gzip": (lambda path, good: path.write_bytes(gzip.compress(good)), "gzip"),
    "text": (lambda path, _: path.write_text("cell,gene\n"), "starts with the bytes"),
    "zip": (lambda path, _: path.write_bytes(b"PK\x03\x04rest"), "zip"),
    "folder": (lambda path, _: path.mkdir(), "folder"),
    "noise": (
        lambda path, good: path.write_bytes(good[:8] + bytes(range(256)) * 40),
        CUT_SHORT,
    ),
    "last_chunk_damaged": (last_chunk_damaged, "'X/data'.*cannot be read"),
}


@pytest.mark.parametrize("case", NOT_HDF5)
def test_damaged_and_other_files_are_refused_with_one_clear_error(tmp_path, capsys, case):
    damage, says = NOT_HDF5[case]
    good = write_base(tmp_path / "good.h5ad").read_bytes()
    path = tmp_path / "odd.h5ad"
    damage(path, good)
    assert_refused(path, says, capsys, written=["good.h5ad", "odd.h5ad"])


@pytest.mark.parametrize("size", [512, 2048])
def test_a_user_block_may_precede_the_signature(tmp_path, size):
    path = write_base(tmp_path / "odd.h5ad", userblock_size=size)
    with path.open("r+b") as file:
        file.write(b"anything")
    lp.convert(path, tmp_path / "a.zarr")
    assert_equal(tmp_path / "a.zarr", read_with_anndata(path))


@pytest.mark.slow
def test_the_shell_command_prints_the_error_on_one_line(tmp_path):
    path, written = write_changed(tmp_path / "odd.h5ad", REFUSED["view_of_a_lost_file"][0])
    assert_command_refuses(path, written=written)


@pytest.mark.slow
def test_a_filter_that_is_not_installed_is_named(tmp_path):
    path, written = write_changed(tmp_path / "odd.h5ad", plugin("Zstd"))
    without = tmp_path / "without"
    without.mkdir()
    (without / "hdf5plugin.py").write_text("raise ImportError")
    done = run_command(path, first=f"sys.path.insert(0, {str(without)!r})")  # which the process that reads gets, too
    assert done.returncode == 1
    assert "HDF5 filter 'zstd' (number 32015), which is not installed" in done.stderr
    assert "pip install hdf5plugin" in done.stderr
    assert "Traceback" not in done.stderr
    assert leftovers(tmp_path, "without", *written) == []
