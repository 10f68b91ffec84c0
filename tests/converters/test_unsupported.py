"""Errors for formats that lazypert does not read name the format and explain what to do."""

import h5py
import numpy as np
import pytest

import lazypert as lp
from lazypert.converter import converters, open_source
from lazypert.errors import SourceFormatError
from tests.support.data import require_data
from tests.support.stores import counts, leftovers, screen, write


def h5mu(path, *, block=True, modalities=("atac", "rna")):
    """Write MuData: a user block that names the format, then HDF5 with one AnnData per modality."""
    with h5py.File(path, "w", userblock_size=512 if block else 0) as file:
        for name in ("obs", "var", *(f"mod/{name}" for name in modalities)):
            file.create_group(name)
    if block:
        with path.open("r+b") as raw:
            raw.write(b"MuData (format-version=0.1.0;creator=mudata)")
    return path


def loom(path):
    with h5py.File(path, "w") as file:
        file["matrix"] = counts(4, 3).toarray().T
        file["row_attrs/Gene"], file["col_attrs/CellID"] = np.array([b"a", b"b", b"c"]), np.array([b"1"] * 4)
    return path


def molecule_info(path):
    with h5py.File(path, "w") as file:
        for name in ("barcode_idx", "umi", "gem_group", "count"):
            file[name] = np.arange(4)
    return path


MADE = {
    "h5mu": (h5mu, r"MuData.*'atac', 'rna'.*\['rna'\]\.write_h5ad\('rna\.h5ad'\)"),
    "h5mu_without_rna": (lambda p: h5mu(p, modalities=("mod1", "mod2")), r"\['mod1'\]\.write_h5ad"),
    "old_h5mu": (lambda p: h5mu(p, block=False), "MuData.*'atac', 'rna'"),
    "loom": (loom, "Loom.*read_loom"),
    "molecule_info": (molecule_info, "list of molecules.*filtered_feature_bc_matrix"),
}


@pytest.mark.parametrize("kind", MADE)
def test_the_error_explains_what_to_do(tmp_path, kind):
    make, says = MADE[kind]
    path = make(tmp_path / "source.data")
    with pytest.raises(SourceFormatError, match=says) as caught:
        lp.convert(path, tmp_path / "a.zarr")
    assert repr(str(path)) in str(caught.value)
    assert leftovers(tmp_path, "source.data") == []


def test_a_truncated_mudata_file_is_still_named(tmp_path):
    path = h5mu(tmp_path / "a.h5mu")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(SourceFormatError, match="MuData"):
        open_source(path)


PUBLISHED = {
    "mudata_v0.1.2_mdata_axis0.h5mu": "MuData.*'mod1', 'mod2'",
    "mudata_v0.2.4_mdata_axis0.h5mu": "MuData.*'mod1', 'mod2'",
    "mudata_v0.4.1_mdata_axis0.h5mu": "MuData.*'mod1', 'mod2'",
    "muon_test_rna_atac.h5mu": r"MuData.*'atac', 'rna'.*\['rna'\]",
    "scvi_Cortex.loom": "Loom",
    "scvi_mpfc-starmap.loom": "Loom",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_unsupported_files_are_named(name):
    path = require_data("encodings", name)
    with pytest.raises(SourceFormatError, match=PUBLISHED[name]):
        open_source(path)


def test_every_published_file_is_recognised_by_one_converter():
    for path in sorted(require_data("encodings").iterdir()):
        found = [name for name, converter in converters().items() if converter.recognises(path)]
        if path.suffix == ".h5mu":  # "foreign" is asked first, before h5ad, which recognises some of these too
            assert found[0] == "foreign"
        elif path.suffix in (".h5", ".h5ad", ".loom"):
            assert found == [{".h5": "10x_h5", ".h5ad": "h5ad", ".loom": "foreign"}[path.suffix]], path.name


def test_other_files_are_not_taken_for_unsupported_ones(tmp_path):
    unsupported = converters()["foreign"]
    (tmp_path / "text").write_text("MuDat")
    (tmp_path / "damaged").write_bytes(b"\x89HDF\r\n\x1a\n rest")
    for path in (write(screen(), tmp_path / "a.h5ad"), tmp_path / "text", tmp_path / "damaged", tmp_path):
        assert not unsupported.recognises(path)
