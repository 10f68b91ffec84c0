"""A golden store per format version: old stores stay readable, and conversion writes the same bytes.

Run as a script to create the stores of the current version that do not exist yet.
"""

import zipfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from lazypert.errors import ConfigError
from lazypert.store.format import FORMAT_VERSION
from lazypert.store.store import Store
from tests.support.stores import ROLES, dense, files, read_store, source_row

GOLDEN = Path(__file__).parents[1] / "data"
NEWEST = {
    compression: GOLDEN / f"golden_v{FORMAT_VERSION}{'_compact' * (compression == 'compact')}.zip"
    for compression in ("fast", "compact")
}
N_OBS, GENES = 60, [f"gene{j}" for j in range(12)]


def source():
    """AnnData whose values are computed by arithmetic, so that no random generator matters."""
    cell, gene = np.arange(N_OBS)[:, None], np.arange(12)[None, :]
    counts = (cell * 7 + gene * 13) % 11 * ((cell + gene) % 3 == 0)
    counts[59, 11] = 70_000
    i = np.arange(N_OBS)
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(np.array(["BRCA1", "non-targeting", "TP53"])[i % 3]),
            "cell_type": pd.Categorical(np.array(["Astrocyte", "Neuron"])[i // 3 % 2]),
            "batch": pd.Categorical(np.array(["b1", "b2"])[i // 6 % 2]),
            "n": i.astype("i4"),
            "score": i / 8,
            "maybe": pd.array([None if k % 4 == 0 else k for k in range(N_OBS)], dtype="Int64"),
            "guide": pd.Categorical([f"sg{k % 5}" for k in range(N_OBS)]),
        },
        index=[f"cell{k}" for k in range(N_OBS)],
    )
    made = anndata.AnnData(
        sparse.csr_matrix(counts.astype("f4")), obs, pd.DataFrame({"chrom": pd.Categorical(list("XY12") * 3)}, GENES)
    )
    made.layers["half"] = sparse.csr_matrix(counts / 2)
    made.obsm["X_pca"] = (cell * [[1.0, 0.5]]).astype("f4")
    return made


def convert(folder, compression):
    source().write_h5ad(folder / "golden.h5ad")
    return lp.convert(folder / "golden.h5ad", folder / "golden.zarr", compression=compression, **ROLES)


def unpacked(archive, folder):
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder / "golden.zarr"


@pytest.fixture(scope="module", params=[*(f"v{n}" for n in range(1, FORMAT_VERSION + 1)), "v3_compact"])
def golden(request, tmp_path_factory):
    return unpacked(GOLDEN / f"golden_{request.param}.zip", tmp_path_factory.mktemp("golden"))


def test_golden_stores_verify(golden):
    assert lp.verify(golden) > 50
    assert f"v{Store(golden).attrs['format_version']}" in {f"v{n}" for n in range(1, FORMAT_VERSION + 1)}


def test_knockdown_is_the_same_with_and_without_stored_cell_statistics(golden):
    assert Store(golden).has_cell_stats == (Store(golden).attrs["format_version"] >= 2)
    options = {"residual_expression": 0.9, "cell_residual_expression": 0.9, "min_cells": 1}
    with pytest.raises(ConfigError, match="0 of 2 targets are in the var index"):
        lp.open(golden).pert.knockdown(**options)
    targets = {"BRCA1": "gene1", "TP53": "gene2"}
    table = lp.open(golden).pert.knockdown(**options, targets=targets).table.set_index("perturbation")
    made = source()
    for label, gene in targets.items():
        values, is_label = made[:, gene].X.toarray()[:, 0], made.obs["perturbation"] == label
        control_mean = values[made.obs["perturbation"] == "non-targeting"].mean()
        assert table.loc[label, "control_mean"] == pytest.approx(control_mean)
        assert table.loc[label, "perturbed_mean"] == pytest.approx(values[is_label].mean())


def test_golden_stores_hold_their_source(golden):
    found, expected, rows = read_store(golden), source(), source_row(golden)
    assert found.obs_names.tolist() == [f"cell{row}" for row in rows]
    np.testing.assert_array_equal(dense(found.X), expected.X.toarray()[rows])
    np.testing.assert_array_equal(dense(found.layers["half"]), expected.layers["half"].toarray()[rows])
    np.testing.assert_array_equal(found.obsm["X_pca"], expected.obsm["X_pca"][rows])
    pd.testing.assert_frame_equal(found.obs, expected.obs.iloc[rows], check_index_type=False, check_dtype=False)
    assert Store(golden).matrix().dtype == np.uint32
    assert found.X.dtype == (np.float32 if Store(golden).attrs["format_version"] >= 3 else np.uint32)


def test_golden_stores_hold_these_values(golden):
    ds = lp.open(golden)
    row_of = {name: row for row, name in enumerate(ds.cell_name.values.tolist())}
    assert ds.X.values[row_of["cell0"]].tolist() == [0, 0, 0, 6, 0, 0, 1, 0, 0, 7, 0, 0]
    assert ds.X.values[row_of["cell59"], 11] == 70_000
    table = ds.pert.table()
    assert table["cell_type"].tolist() == ["Astrocyte"] * 3 + ["Neuron"] * 3
    assert table["perturbation"].tolist() == ["BRCA1", "TP53", "non-targeting"] * 2
    assert table["n_cells"].tolist() == [10] * 6
    assert table["n_batches"].tolist() == [2] * 6
    assert table["is_control"].tolist() == [False, False, True] * 2


@pytest.mark.parametrize("compression", NEWEST)
def test_conversion_writes_the_same_bytes(tmp_path, compression):
    old, new = files(unpacked(NEWEST[compression], tmp_path / "old")), files(convert(tmp_path, compression))
    assert new.keys() == old.keys()
    assert [key for key in old if "__lazypert__/manifest" not in key and old[key] != new[key]] == []


if __name__ == "__main__":
    import tempfile

    GOLDEN.mkdir(exist_ok=True)
    for compression, path in NEWEST.items():
        if path.exists():  # golden stores stay as they are
            continue
        with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(convert(Path(name), compression).rglob("*")):
                if file.is_file():
                    info = zipfile.ZipInfo(file.relative_to(name).as_posix())
                    info.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(info, file.read_bytes())
        print(path, path.stat().st_size)
