"""The report counts what a loop over cells counts."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lazypert import ControlMappingConfig, FewShotSplitter, FewShotSplitterConfig
from lazypert.design import control_coverage as module
from lazypert.design.control_coverage import control_coverage
from lazypert.screen.roles import AXES, Roles
from lazypert.splits.names import SPLITS
from tests.support.matching import KEYS, matched_pool, random_keyed_cells
from tests.support.screens import CONTROL, make_cells


def naive(cells, keys, split_of=None, allowed=None, *, map_controls=False, covariates=()):
    """One dict per group, from one loop over cells."""
    frame, pools = cells.frame, defaultdict(list)
    for row in range(len(frame)):
        labels = frame["cell_type"][row], frame["perturbation"][row]
        if not all(map(pd.notna, labels)) or (labels[1] == CONTROL and not map_controls):
            continue
        split = () if split_of is None else (split_of.get(row, "none"),)
        rows = None if split_of is None else allowed(split[0], row)
        condition = tuple("" if pd.isna(frame[name][row]) else f"{frame[name][row]:g}" for name in covariates)
        pools[(*split, *labels, *condition, frame["dataset"][row])].append(matched_pool(frame, row, keys, rows))
    table, names = [], ["split"] * (split_of is not None) + ["cell_type", "perturbation", *covariates, "dataset"]
    for group, found in pools.items():
        line = dict(zip(names, group, strict=True)) | {"n_cells": len(found)}
        for level, name in reversed(list(enumerate(("cell_type", *keys)))):
            sizes = [len(pool) for n, pool in found if n == level and pool]
            line[f"matched_{name}"] = len(sizes)
            line[f"smallest_pool_{name}"] = min(sizes, default=None)
            line[f"median_pool_{name}"] = np.median(sizes) if sizes else np.nan
        line["unmatched"] = sum(not pool for _, pool in found)
        table.append(line)
    order = {name: number for number, name in enumerate((*SPLITS, "none"))}
    axes = [name for name in names if name != "split"]

    def key(line):  # covariates by their values, missing ones first
        values = [float(line[name] or -1) if name in covariates else line[name] for name in axes]
        return [order.get(line.get("split"), 0), *values]

    return sorted(table, key=key)


def same(table, expected):
    assert table.columns.tolist() == list(expected[0])
    got = table.astype(object).where(table.notna(), None).to_dict("records")
    wanted = [{name: None if pd.isna(value) else value for name, value in line.items()} for line in expected]
    assert got == wanted


@pytest.mark.parametrize("keys", [(), ("plate",), KEYS], ids="-".join)
@pytest.mark.parametrize("map_controls", [False, True])
def test_the_cells_of_a_screen(keys, map_controls):
    cells = random_keyed_cells(300, 1, n_datasets=3, n_types=3)
    table = control_coverage(cells, ControlMappingConfig(match=("cell_type", *keys), map_controls=map_controls))
    same(table, naive(cells, keys, map_controls=map_controls))


@pytest.mark.parametrize("policy", ["split", "train"])
def test_the_cells_of_each_split(policy, monkeypatch):
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 17)  # several chunks
    cells = random_keyed_cells(300, 2, n_datasets=2)
    splits = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("P0",))).split(cells)
    splits = splits.keep(np.arange(300) % 7 > 0)
    split_of = {row: name for name in SPLITS for row in splits[name]}

    def allowed(name, row):
        if name == "none":
            return None
        own = np.asarray(splits[name])
        has_own = matched_pool(cells.frame, row, (), own)[1]
        return own if policy == "split" and has_own else np.asarray(splits.train_indices)

    config = ControlMappingConfig(match=KEYS, controls=policy)
    expected = naive(cells, KEYS, split_of, allowed)
    same(control_coverage(cells, config, splits), expected)
    only = control_coverage(cells, config, splits, only_splits=True)
    same(only, [line for line in expected if line["split"] != "none"])
    kept = np.arange(300) % 3 > 0
    assert (
        control_coverage(cells, config, splits, kept=kept)["n_cells"].sum()
        == (
            cells.frame[kept & (cells.frame["perturbation"] != CONTROL)]
            .dropna(subset=["cell_type", "perturbation"])
            .shape[0]
        )
    )


@pytest.mark.parametrize("match", [("time",), ("donor", "dose"), ("dose", "time", "batch")], ids="-".join)
def test_the_cells_of_each_condition(match):
    frame = random_keyed_cells(400, 7, n_datasets=2).frame
    rng = np.random.default_rng(8)
    dose = np.where(rng.random(400) < 0.2, np.nan, rng.choice([0.5, 2.0, 10.0], 400))
    roles = Roles(pert_col="perturbation", cell_type_col="cell_type", batch_col="batch", control_pert=CONTROL)
    cells = make_cells(
        roles=replace(roles, covariates=("dose", "time")),
        obs={"dose": dose, "time": rng.choice([6, 24], 400), "donor": frame["donor"]},
        **{axis: frame[axis].tolist() for axis in AXES},
    )
    table = control_coverage(cells, ControlMappingConfig(match=match))
    same(table, naive(cells, match, covariates=("dose", "time")))
    pd.testing.assert_frame_equal(
        table[table.columns[:4]].drop_duplicates(ignore_index=True),
        cells.groups.table().query("~is_control")[["cell_type", "perturbation", "dose", "time"]].reset_index(drop=True),
    )


def test_it_does_not_depend_on_the_fallback():
    cells = random_keyed_cells(200, 3)
    one, other = (
        control_coverage(cells, ControlMappingConfig(match=KEYS, fallback=fallback))
        for fallback in ("drop_last", "error")
    )
    pd.testing.assert_frame_equal(one, other)


def test_strategies_have_their_own_levels():
    cells = random_keyed_cells(200, 4, missing=0.0)
    by_batch = control_coverage(cells, ControlMappingConfig(strategy="batch"))
    pd.testing.assert_frame_equal(by_batch, control_coverage(cells, ControlMappingConfig(match=("batch",))))
    assert "matched_batch" not in control_coverage(cells, ControlMappingConfig())


def test_a_disjoint_policy_gives_each_split_controls_of_its_own():
    cells = random_keyed_cells(300, 5, missing=0.0)
    splits = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("P0",))).split(cells)
    table = control_coverage(cells, ControlMappingConfig(match=("donor",), controls="disjoint"), splits)
    assert table["unmatched"].sum() == 0
    shared = control_coverage(cells, ControlMappingConfig(match=("donor",)), splits)
    assert table["median_pool_donor"].max() < shared["median_pool_donor"].max()


def test_cells_without_controls_are_unmatched():
    cells = make_cells(perturbation=["A", "A", CONTROL], cell_type=["T", "U", "U"])
    table = control_coverage(cells, ControlMappingConfig(match=("cell_type",)))
    assert table[["cell_type", "matched_cell_type", "unmatched"]].to_numpy().tolist() == [["T", 0, 1], ["U", 1, 0]]
    assert "dataset" not in table


def test_a_screen_without_perturbed_cells_has_an_empty_report():
    cells = make_cells(perturbation=[CONTROL] * 3)
    table = control_coverage(cells, ControlMappingConfig(match=("cell_type",)))
    assert len(table) == 0
    assert table.columns[:3].tolist() == ["cell_type", "perturbation", "n_cells"]
