"""Guides and antibodies of 10x files are obsm entries with their names, and X has genes only."""

import h5py
import numpy as np
import pytest
import scanpy

import lazypert as lp
from lazypert.converter import open_source
from lazypert.store.store import Store
from tests.support.mtx import folder, save
from tests.support.stores import counts, read_store, source_row

GENES, GUIDES, ANTIBODIES = ["TP53", "KRAS", "MYC"], ["sgTP53", "sgNT"], ["CD3"]
NAMES = ["sgTP53", "TP53", "CD3", "KRAS", "sgNT", "MYC"]
TYPES = ["CRISPR Guide Capture", "Gene Expression", "Antibody Capture", "Gene Expression", "CRISPR Guide Capture"]
TYPES += ["Gene Expression"]


def h5(path, names=NAMES, types=TYPES, seed=0):
    matrix = counts(30, len(names), seed)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array([f"CELL-{seed}-{i}" for i in range(30)], dtype="S")
        group["data"], group["indices"] = matrix.data.astype("i4"), matrix.indices.astype("i8")
        group["indptr"], group["shape"] = matrix.indptr.astype("i8"), np.array(matrix.shape[::-1], "i4")
        features = group.create_group("features")
        features["id"] = features["name"] = np.array(names, dtype="S")
        features["feature_type"] = np.array(types, dtype="S")
    return path


def mtx(path, names=NAMES, types=TYPES, seed=0):
    made = folder(path.with_suffix(""), counts(30, len(names), seed, "i8"), genes=names)
    table = "".join(f"{n}\t{n}\t{t}\n" for n, t in zip(names, types, strict=True))
    save(made / "features.tsv.gz", table)
    return made


def all_features(path):
    read = scanpy.read_10x_h5 if path.is_file() else scanpy.read_10x_mtx
    return read(path, gex_only=False)


@pytest.mark.parametrize("make", [h5, mtx])
def test_only_genes_are_in_x(tmp_path, make):
    path = make(tmp_path / "a.h5")
    store = lp.convert(path, tmp_path / "a.zarr")
    found, rows, expected = read_store(store), source_row(store), all_features(path)
    assert list(found.var_names) == GENES
    assert set(found.var["feature_types"]) == {"Gene Expression"}
    np.testing.assert_array_equal(found.X.toarray(), expected[rows, GENES].X.toarray())
    for kind, names in (("CRISPR Guide Capture", GUIDES), ("Antibody Capture", ANTIBODIES)):
        np.testing.assert_array_equal(found.obsm[kind].toarray(), expected[rows, names].X.toarray())
        assert list(found.uns["obsm_columns"][kind]) == names
    with lp.open(store) as ds:
        np.testing.assert_array_equal(ds["total_counts"].values, expected[rows, GENES].X.toarray().sum(axis=1))
    notes = [note for note in Store(store).attrs["warnings"] if "features" in note]
    assert len(notes) == 2
    assert "2 features are not genes: they are in obsm/CRISPR Guide Capture" in notes[0]


@pytest.mark.parametrize("make", [h5, mtx])
@pytest.mark.parametrize("kind", ["Gene Expression", "Antibody Capture", "Peaks"])
def test_a_file_with_one_kind_of_feature_is_one_matrix(tmp_path, make, kind):
    reader = open_source(make(tmp_path / "a.h5", types=[kind] * 6))
    assert reader.matrices == {"X": 6}
    assert list(reader.var().index) == NAMES
    assert reader.not_carried == ()


def test_entries_of_several_files_must_have_the_same_columns(tmp_path):
    other = [name.replace("sgNT", "sgMYC") for name in NAMES]
    paths = [h5(tmp_path / "a.h5"), h5(tmp_path / "b.h5", seed=1), h5(tmp_path / "c.h5", other, seed=2)]
    same = read_store(lp.convert(paths[:2], tmp_path / "same.zarr"))
    assert list(same.uns["obsm_columns"]["CRISPR Guide Capture"]) == GUIDES
    store = lp.convert(paths, tmp_path / "other.zarr")
    assert set(read_store(store).obsm) == {"Antibody Capture"}
    assert any(
        "obsm/CRISPR Guide Capture was not copied: its columns have other names" in n
        for n in Store(store).attrs["warnings"]
    )


def test_a_folder_of_text_is_read_in_several_blocks(tmp_path):
    reader = open_source(mtx(tmp_path / "a"))
    expected = counts(30, 6, 0, "i8").toarray()
    for matrix, columns in (("X", [1, 3, 5]), ("obsm/CRISPR Guide Capture", [0, 4]), ("obsm/Antibody Capture", [2])):
        found = np.zeros((30, len(columns)))
        for spec in reader.blocks(matrix, 100):
            block = reader.read_block(spec)
            dense = block.csr.to_dense(np.float64)
            found[block.first_row : block.first_row + len(dense)] += dense
        np.testing.assert_array_equal(found, expected[:, columns])
