"""Stores whose checksums fit and whose content lies are refused by what reads the lie; see README.md here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import lazypert as lp
from lazypert.errors import StoreDamagedError
from lazypert.store.format import TABLES
from tests.fuzz.lying_stores import FACTS, GROUPS, RUNS, TABLES_OF_NUMBERS, read_all, seal
from tests.support.stores import converted, copied, screen

SEEDS = 25  # a minute or more; `python -m tests.fuzz.lying_stores` runs others
_MEMORY = 6 << 30  # bytes of address space, most of which the imports reserve
_LIMITED = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
runpy.run_module("tests.fuzz.lying_stores", run_name="__main__")
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    adata = screen(genes=["TP53", "BRCA1", "KRAS", *(f"gene{j}" for j in range(14))])
    return converted(tmp_path_factory.mktemp("lying"), adata)[1]


def change(path, table, index, value):
    array = zarr.open_group(path, mode="r+", use_consolidated=False)[table]
    values = array[:]
    values[index] = value
    array[:] = values
    seal(path)


def test_a_store_that_is_sealed_again_is_intact(store, tmp_path):
    path = copied(store, tmp_path / "a.zarr")
    seal(path)
    assert lp.verify(path) == lp.verify(store)
    found, right = read_all(path), read_all(store)
    assert found == right
    assert not any(isinstance(value, Exception) for value in right.values())


LIES = {
    "a run begins late": (f"{RUNS}/start", 0, 1),
    "a run begins before the one before": (f"{RUNS}/start", 3, 0),
    "a run ends in the next": (f"{RUNS}/stop", 1, 10**6),
    "a run ends beyond the cells": (f"{RUNS}/stop", -1, 2**40),
    "a run begins at a negative row": (f"{RUNS}/start", 2, -5),
    "a run has a code beyond the labels": (f"{RUNS}/perturbation", 1, 99),
    "a run has a code below -1": (f"{RUNS}/cell_type", 1, -2),
    "the labels of two runs are swapped": (f"{RUNS}/perturbation", [0, 1], [1, 0]),
    "numbers of cells do not add up": (f"{GROUPS}/n_cells", 2, 1),
    "a number of cells is negative": (f"{GROUPS}/n_cells", 2, -3),
    "a subgroup is of a run beyond the last": (f"{GROUPS}/run", -1, 500),
    "a subgroup is of a batch beyond the last": (f"{GROUPS}/batch", 0, 77),
    "subgroups are not sorted": (f"{GROUPS}/batch", [0, 1], [1, 0]),
}


@pytest.mark.parametrize("lie", LIES)
def test_run_tables_that_cannot_be_right_are_refused(store, tmp_path, lie):
    path = copied(store, tmp_path / "a.zarr")
    change(path, *LIES[lie])
    with pytest.raises(StoreDamagedError, match=f"{TABLES}/(runs|subgroups).*contradicts itself"):
        _ = lp.open(path).pert.groups


CELL_LIES = {
    "obs codes beyond the categories": ("obs/perturbation/codes", 5, 100, lambda ds: np.asarray(ds.perturbation)),
    "obs codes below -1": ("obs/cell_type/codes", 5, -2, lambda ds: np.asarray(ds.cell_type_code)),
    "batch codes beyond the labels": (f"{TABLES}/batch", 5, 9, lambda ds: ds.pert.groups.batch_of(np.arange(3))),
    "hashes out of order": (f"{TABLES}/name_hash", 1, 0, lambda ds: ds.pert.regroup(pert_col="ordered")),
    "a target beyond the genes": (f"{FACTS}/target", 0, 10**6, lambda ds: ds.pert.knockdown()),
    "a control beyond the cells": (f"{FACTS}/control_row", 0, 10**6, lambda ds: ds.pert.knockdown()),
    "row bounds that descend": ("X/indptr", 9, 0, lambda ds: ds.X[:20].compute()),
    "row bounds beyond the values": ("X/indptr", -1, 2**30, lambda ds: ds.X.compute()),
    "a column beyond the last": ("X/indices", 3, 17, lambda ds: ds.X.compute()),
    "a column far beyond the last": ("X/indices", 3, 30_000, lambda ds: ds.X.compute()),
    "a column beyond the last, genes chosen": (
        "X/indices", 3, 18, lambda ds: ds.pert.source().matrix.read_dense(np.arange(90), _first_genes()),
    ),
}  # fmt: skip


def _first_genes():
    from lazypert.sparse.columns import ColumnSelection

    return ColumnSelection.from_indices(np.array([0, 2]), 17)


@pytest.mark.parametrize("lie", CELL_LIES)
def test_values_that_cannot_be_right_are_refused_when_they_are_read(store, tmp_path, lie):
    table, index, value, read = CELL_LIES[lie]
    path = copied(store, tmp_path / "a.zarr")
    change(path, table, index, value)
    dataset = lp.open(path)
    with pytest.raises(StoreDamagedError, match=table.rpartition("/")[0]):
        read(dataset)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_obs", 2**40), ("n_obs", -1), ("n_vars", "many"), ("roles", []), ("matrices", None), ("summary", 3)],
)
def test_root_attributes_that_cannot_be_right_are_refused(store, tmp_path, name, value):
    path = copied(store, tmp_path / "a.zarr")
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["lazypert"][name] = value
    (path / "zarr.json").write_text(json.dumps(metadata))
    seal(path) if name not in ("matrices", "roles", "summary") and value in (2**40,) else None
    with pytest.raises(StoreDamagedError):
        lp.open(path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_mutants_end_in_errors_of_lazypert_within_limited_memory(store, tmp_path):
    shutil.copytree(store, tmp_path / "a.zarr")
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path / "a.zarr"), "0", str(SEEDS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == SEEDS
    assert [record for record in records if "raised" in record] == []
    wrong_kind = [r for r in records for text in r["refused"].values() if text.startswith("SourceFormatError")]
    assert wrong_kind == []
    refused = [record for record in records if record["refused"]]
    assert len(refused) > SEEDS // 3
    assert len({record["said"].partition(":")[0] for record in refused}) > 5  # different tables
    assert len(TABLES_OF_NUMBERS) > 15
    assert Path(store).exists()
