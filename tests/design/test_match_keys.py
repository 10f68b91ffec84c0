"""Controls share as many keys with their cell as any control of its pool does, and are fair at each level."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lazypert import ControlMappingConfig, FewShotSplitter, FewShotSplitterConfig, RandomSplitter, RandomSplitterConfig
from lazypert._internal.inverse_permutation import inverse
from lazypert.design.control_draws import DrawnCells, Reach
from lazypert.design.control_policy import with_own_controls
from lazypert.design.control_pools import control_pools
from lazypert.design.controls import control_mapping
from lazypert.design.match_keys import MatchKeys
from lazypert.errors import ConfigError, EmptyPoolError
from lazypert.screen.roles import AXES, Roles
from lazypert.splits.names import SPLITS
from tests.support.matching import KEYS, matched_pool, random_keyed_cells
from tests.support.screens import CONTROL, make_cells

POLICIES = ("split", "train", "shared", "disjoint")


def drawn_cells(cells, rows, **options):
    groups, rows = cells.groups, np.asarray(rows)
    position = rows if groups.row_order is None else inverse(groups.row_order)[rows]
    return DrawnCells(position, rows, groups.run_of(position), **options)


def keyed_pools(cells, keys=KEYS, fallback="drop_last", **options):
    match = MatchKeys(cells, ("cell_type", *keys), fallback=fallback)
    return control_pools(cells.groups, by_batch=False, match=match, **options)


def draw(pools, cells, rows, n, words, reach=None, **options):
    """(m, n) store rows of controls."""
    return pools.controls[pools.control_index(drawn_cells(cells, rows, **options), n, words, reach)]


def fixed(pools, cells, rows, n, seed):
    return pools.fixed_controls(drawn_cells(cells, rows).position, n, seed)


def allowed_controls(splits, name, policy, cells, row):
    """Rows among which a policy lets a cell of a split choose, from the labels alone."""
    own, train = (np.asarray(splits[split]) for split in (name, "train"))
    if policy == "train":
        return train
    if policy == "shared":
        return np.concatenate([np.asarray(splits[split]) for split in SPLITS])
    if policy == "split" and not matched_pool(cells.frame, row, (), own)[1]:
        return train
    return own


@pytest.mark.parametrize("policy", [None, *POLICIES])
@pytest.mark.parametrize("keys", [(), ("plate",), ("batch", "donor"), KEYS], ids="-".join)
@pytest.mark.parametrize("seed", [0, 1])
def test_controls_are_those_of_the_labels(seed, keys, policy):
    cells = random_keyed_cells(260, seed, n_datasets=1 + seed, missing=0.1)
    few = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("P0",), seed=seed)).split(cells)
    random = RandomSplitter(RandomSplitterConfig(train_frac=0.5, valid_frac=0.25, seed=seed)).split(cells)
    levels = Counter()
    for splits in (None,) if policy is None else (few, random):
        if policy == "disjoint":
            splits = with_own_controls(cells.groups, splits, 42)
        for name in (None,) if policy is None else SPLITS:
            options = {} if name is None else {"splits": splits, "name": name, "policy": policy}
            pools = keyed_pools(cells, keys, **options)
            labelled = np.flatnonzero(cells.groups.expand(cells.groups.ids) >= 0)
            rows = labelled if name is None else np.intersect1d(labelled, np.asarray(splits[name]))
            drawn, near = draw(pools, cells, rows, 3, (seed, 5)), draw(pools, cells, rows, 3, (seed, 5), Reach(4, 0.5))
            again = fixed(pools, cells, rows, 3, seed)
            for i, row in enumerate(rows):
                allowed = None if name is None else allowed_controls(splits, name, policy, cells, row)
                level, pool = matched_pool(cells.frame, row, keys, allowed)
                levels[level] += bool(pool)
                assert pools.matched(drawn_cells(cells, [row]).position).size.tolist() == [len(pool)]
                for controls in (drawn[i], near[i], again[i]):
                    if pool:
                        assert set(controls.tolist()) <= pool
                        assert len(set(controls.tolist())) == min(3, len(pool)) or len(pool) < 3
                    else:
                        assert set(again[i].tolist()) == {row}
    assert set(levels) >= set(range(len(keys) + 1))


@pytest.mark.parametrize("policy", POLICIES)
def test_mappings_follow_the_splits_and_policies(policy):
    cells = random_keyed_cells(200, 3, n_datasets=2)
    splits = RandomSplitter(RandomSplitterConfig(train_frac=0.5, valid_frac=0.25)).split(cells)
    splits = splits.keep(np.arange(200) % 11 > 0)
    config = ControlMappingConfig(match=KEYS, controls=policy, on_empty="mask", n_basal_samples=2)
    mapping = control_mapping(config)
    rows, mapped = mapping.mapped_rows(cells), mapping.build_mapping(cells, splits)
    if policy == "disjoint":
        splits = with_own_controls(cells.groups, splits, 42)
    split_of = {row: name for name in SPLITS for row in splits[name]}
    for row, controls in zip(rows.tolist(), mapped, strict=True):
        name = split_of.get(row)
        allowed = None if name is None else allowed_controls(splits, name, policy, cells, row)
        _, pool = matched_pool(cells.frame, row, KEYS, allowed)
        assert set(controls.compressed().tolist()) <= pool
        assert controls.mask.tolist() == [not pool] * 2


class TestStrategyBatch:
    def cells(self):
        return random_keyed_cells(300, 2, n_datasets=2, n_batches=5, missing=0.0)

    def test_draws_what_the_same_keys_draw(self):
        cells, rows = self.cells(), np.arange(300)
        one, other = control_pools(cells.groups, by_batch=True), keyed_pools(cells, ("batch",))
        for reach in (None, Reach(6, 0.5)):
            expected = draw(one, cells, rows, 3, (1, 2), reach)
            assert (draw(other, cells, rows, 3, (1, 2), reach) == expected).all()
        assert (fixed(other, cells, rows, 3, 7) == fixed(one, cells, rows, 3, 7)).all()

    def test_the_cell_type_alone_draws_what_the_random_strategy_draws(self):
        cells, rows = self.cells(), np.arange(300)
        one, other = control_pools(cells.groups, by_batch=False), keyed_pools(cells, ())
        assert (draw(other, cells, rows, 3, (1, 2)) == draw(one, cells, rows, 3, (1, 2))).all()
        assert (fixed(other, cells, rows, 3, 7) == fixed(one, cells, rows, 3, 7)).all()

    def test_its_cells_without_a_batch_still_match_one_another(self):
        cells = make_cells(perturbation=["A"] * 3 + [CONTROL] * 4, batch=[None, "b", None, None, "b", "b", "b"])
        by_strategy = control_mapping(ControlMappingConfig(strategy="batch")).build_mapping(cells)
        assert by_strategy[[0, 2], 0].tolist() == [3, 3]
        match = ControlMappingConfig(match=("batch",), n_basal_samples=4)
        assert set(control_mapping(match).build_mapping(cells)[0].tolist()) == {3, 4, 5, 6}


def test_a_missing_label_matches_nothing_not_even_another():
    cells = make_cells(
        perturbation=["A", "A", CONTROL, CONTROL, CONTROL],
        obs={"donor": [None, "x", None, "x", "x"], "plate": ["p", None, "p", None, "p"]},
    )
    mapped = control_mapping(ControlMappingConfig(match=("donor", "plate"), n_basal_samples=3)).build_mapping(cells)
    assert set(mapped[0].tolist()) == {2, 3, 4}
    assert set(mapped[1].tolist()) == {3, 4}


def test_covariates_are_matched_by_their_labels_and_not_read():
    """An empty label of a covariate is a missing one: it matches nothing."""
    roles = Roles(pert_col="perturbation", cell_type_col="cell_type", control_pert=CONTROL, covariates=("time",))
    frame = random_keyed_cells(300, 4).frame
    time = np.random.default_rng(0).choice(["6", "24", ""], 300).astype(object)
    labels = {axis: frame[axis].tolist() for axis in AXES}
    cells = make_cells(roles=roles, obs={"time": time, "donor": frame["donor"]}, **labels)
    cells.frame["time"] = np.where(time == "", None, time)
    pools = keyed_pools(cells, ("time", "donor"))
    rows = np.flatnonzero(cells.groups.expand(cells.groups.ids) >= 0)
    drawn = draw(pools, cells, rows, 3, (1, 2))
    levels = pools.matched(drawn_cells(cells, rows).position).level
    for row, level, controls in zip(rows.tolist(), levels.tolist(), drawn.tolist(), strict=True):
        n_shared, pool = matched_pool(cells.frame, row, ("time", "donor"))
        assert level == n_shared
        assert set(controls) <= pool
    assert list(pools.match._columns) == ["donor"]


def test_numbers_are_compared_as_numbers():
    cells = make_cells(perturbation=["A", CONTROL, CONTROL], obs={"plate": [10.0, 1.0, 10.0]})
    assert control_mapping(ControlMappingConfig(match=("plate",))).build_mapping(cells).tolist() == [[2]]


def levelled_cells():
    """A cell type with 36 controls, of which 18 share the donor x, of which 9 share its plate p as well."""
    n = 24
    donor = ["x", "x", "y", "y"] * 9
    plate = ["p", "q", "p", "q"] * 9
    return make_cells(
        perturbation=[CONTROL] * 36 + ["A"] * 3 * n,
        obs={"donor": donor + ["x"] * 2 * n + ["z"] * n, "plate": plate + ["p"] * n + ["r"] * n + ["p"] * n},
    )


class TestFairness:
    """At each level: 9, 18 and 36 controls."""

    LEVELS = ((36, 9), (60, 18), (84, 36))  # the first cell of each level, and the size of its pool

    @pytest.mark.parametrize(("row", "size"), LEVELS)
    def test_draws_are_uniform_over_the_pool_in_every_slot(self, row, size):
        cells = levelled_cells()
        pools, (_, pool) = keyed_pools(cells, ("donor", "plate")), matched_pool(cells.frame, row, ("donor", "plate"))
        assert len(pool) == size
        drawn = np.concatenate([draw(pools, cells, [row], 3, (0, epoch)) for epoch in range(2000)])
        assert all(len(set(controls)) == 3 for controls in drawn.tolist())
        for slot in drawn.T:
            counts = np.bincount(slot, minlength=36)[sorted(pool)]
            assert counts.sum() == 2000
            assert stats.chisquare(counts).pvalue > 1e-4

    @pytest.mark.parametrize(("row", "size"), LEVELS)
    def test_draws_within_a_reach_are_uniform_over_an_epoch(self, row, size):
        cells = levelled_cells()
        pools, (_, pool) = keyed_pools(cells, ("donor", "plate")), matched_pool(cells.frame, row, ("donor", "plate"))
        numbers = np.arange(9000)
        drawn = draw(
            pools, cells, np.full(9000, row), 1, (0, 1), Reach(12, 1.0), draw=numbers, phase=numbers / len(numbers)
        )
        counts = np.bincount(drawn.ravel(), minlength=36)[sorted(pool)]
        assert counts.sum() == 9000
        assert counts.min() > 0.7 * 9000 / size
        assert counts.max() < 1.3 * 9000 / size

    @pytest.mark.parametrize("n", [1, 3])
    def test_fixed_pairs_use_each_control_once_before_any_is_used_again(self, n):
        cells = levelled_cells()
        pools = keyed_pools(cells, ("donor", "plate"))
        for first, size in self.LEVELS:
            rows = np.arange(first, first + 24)
            position = drawn_cells(cells, rows).position
            rank = pools._rank_of(position)
            drawn = pools.fixed_controls(position[np.argsort(rank)], n, 7)
            assert all(len(set(controls)) == n for controls in drawn.tolist())
            for start in range(0, 24, size // n):
                turn = drawn[start : start + size // n].ravel().tolist()
                assert len(set(turn)) == len(turn)

    def test_pairs_of_the_levels_are_not_alike(self):
        cells = levelled_cells()
        pools = keyed_pools(cells, ("donor", "plate"))
        x, y = (fixed(pools, cells, np.arange(first, first + 24), 1, 7).ravel() for first in (36, 60))
        assert np.mean(x == y) < 0.3

    def test_draws_depend_on_the_cell_alone(self):
        cells = random_keyed_cells(300, 5, n_datasets=2)
        pools, rows = keyed_pools(cells), np.flatnonzero(cells.groups.expand(cells.groups.ids) >= 0)
        expected, order = draw(pools, cells, rows, 3, (1, 2)), np.random.default_rng(0).permutation(len(rows))
        assert (draw(pools, cells, rows[order], 3, (1, 2)) == expected[order]).all()
        assert (fixed(pools, cells, rows[::7], 2, 3) == fixed(pools, cells, rows, 2, 3)[::7]).all()
        assert (draw(pools, cells, rows, 3, (1, 3)) != expected).any()


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_file_does_not_matter(seed):
    """The same cells by name get the same controls by name, drawn and fixed."""
    found, rng = [], np.random.default_rng(seed)
    cells = random_keyed_cells(200, seed, n_datasets=2)
    for order in (np.arange(200), rng.permutation(200)):
        frame = cells.frame.iloc[order].reset_index(drop=True)
        axes = {axis: frame[axis].to_numpy() for axis in ("cell_type", "perturbation", "dataset", "batch")}
        shuffled = make_cells(names=cells.names[order], obs={key: frame[key] for key in ("donor", "plate")}, **axes)
        pools, rows = keyed_pools(shuffled), np.flatnonzero(shuffled.groups.expand(shuffled.groups.ids) >= 0)
        of_fixed, of_drawn = fixed(pools, shuffled, rows, 2, 3), draw(pools, shuffled, rows, 2, (1, 2))
        names = shuffled.names
        found.append({names[row]: (*names[a], *names[b]) for row, a, b in zip(rows, of_fixed, of_drawn, strict=True)})
    assert found[0] == found[1]


class TestFallbackError:
    def cells(self):
        return make_cells(
            cell_type=["T"] * 5 + ["U"] * 3,
            perturbation=["A", "A", "B", CONTROL, CONTROL, "B, C", CONTROL, "A"],
            obs={"donor": ["x", "y", None, "x", "z", "x", "x", "y"]},
        )

    def test_names_the_groups(self):
        with pytest.raises(EmptyPoolError) as caught:
            control_mapping(ControlMappingConfig(match=("donor",), fallback="error")).build_mapping(self.cells())
        message = str(caught.value)
        assert "match: 3 cells have no control with the same cell_type, donor, in 3 groups" in message
        assert "(T, A), (T, B), (U, A)" in message
        assert "pass fallback='drop_last'" in message

    def test_names_conditions(self):
        labels = {"perturbation": ["A", "A", CONTROL], "cell_type": ["T"] * 3}
        roles = Roles(pert_col="perturbation", cell_type_col="cell_type", control_pert=CONTROL, covariates=("dose",))
        cells = make_cells(roles=roles, obs={"dose": [10.0, None, 1.0], "donor": ["x", "y", "z"]}, **labels)
        config = ControlMappingConfig(match=("donor",), fallback="error")
        with pytest.raises(EmptyPoolError, match=r"in 2 groups: \(T, A, dose 10\), \(T, A, no dose\)\."):
            control_mapping(config).build_mapping(cells)

    def test_masks_cells_on_request(self):
        config = ControlMappingConfig(match=("donor",), fallback="error", on_empty="mask")
        mapped = control_mapping(config).build_mapping(self.cells())
        assert mapped.mask.ravel().tolist() == [False, True, True, False, True]
        assert mapped.compressed().tolist() == [3, 6]

    def test_accepts_screens_in_which_all_cells_match(self):
        cells = self.cells()
        cells.frame["donor"] = "x"
        config = ControlMappingConfig(match=("cell_type", "donor"), fallback="error")
        rows = control_mapping(config).mapped_rows(cells)
        mapped = control_mapping(config).build_mapping(cells).ravel()
        assert (cells.labels("cell_type", rows) == cells.labels("cell_type", mapped)).all()

    def test_draws_for_matched_cells_as_without_it(self):
        cells = random_keyed_cells(200, 6)
        rows = np.flatnonzero(cells.groups.expand(cells.groups.ids) >= 0)
        strict, lenient = keyed_pools(cells, fallback="error"), keyed_pools(cells)
        complete = np.array([matched_pool(cells.frame, row, KEYS)[0] == 3 for row in rows])
        assert 0 < complete.sum() < len(rows)
        assert (strict.matched(drawn_cells(cells, rows).position).size > 0).tolist() == complete.tolist()
        one, other = (draw(pools, cells, rows, 2, (1, 2)) for pools in (strict, lenient))
        assert (one[complete] == other[complete]).all()


class TestOptions:
    @pytest.mark.parametrize("given", ["donor", ("cell_type", "donor"), ["donor"], ("donor",), pd.Index(["donor"])])
    def test_the_cell_type_is_implied(self, given):
        assert ControlMappingConfig(match=given).match == ("cell_type", "donor")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"match": {"donor", "plate"}}, "match: got .*, expected a list of names"),
            ({"match": ("donor", 3)}, "match: got 3, expected names only"),
            ({"match": ("donor", "donor")}, r"match: got \('donor', 'donor'\), expected each key once"),
            ({"match": ("donor", "")}, "expected each key once, and no empty name"),
            ({"match": ("donor", "cell_type")}, "'cell_type', which is always matched, only once and first"),
            ({"match": ("perturbation",)}, "anything but the perturbation, which controls never share"),
            ({"match": ("dataset", "donor")}, "anything but the dataset, which is always matched. Leave it out"),
            ({"match": ("donor",), "fallback": "drop"}, "fallback: got 'drop', expected 'drop_last' or 'error'"),
            ({"fallback": "error"}, "fallback: got 'error' without match"),
            ({"match": ("donor",), "strategy": "batch"}, "with the strategy 'batch', expected 'batch' among the keys"),
        ],
    )  # fmt: skip
    def test_are_checked_on_construction(self, options, message):
        with pytest.raises(ConfigError, match=message):
            ControlMappingConfig(**options)

    def test_the_repr_shows_them(self):
        config = ControlMappingConfig(match=("donor",), fallback="error")
        assert repr(config) == "ControlMappingConfig(match=('cell_type', 'donor'), fallback='error')"

    def test_an_axis_without_labels_is_an_error(self):
        cells = make_cells(perturbation=["A", CONTROL])
        keys = ControlMappingConfig(match=("batch",))
        cells.groups = replace(cells.groups, roles=replace(cells.groups.roles, batch_col=None))
        with pytest.raises(
            ConfigError, match=r"match: got 'batch', but this screen has no batch labels\. Name its column"
        ):
            control_mapping(keys).build_mapping(cells)

    def test_the_column_of_an_axis_stands_for_the_axis(self):
        cells = random_keyed_cells(50, 1)
        cells.groups = replace(cells.groups, roles=replace(cells.groups.roles, batch_col="lane", cell_type_col="line"))
        assert MatchKeys(cells, ("cell_type", "lane")).codes("lane", np.arange(50)).tolist() == (
            MatchKeys(cells, ("cell_type", "batch")).codes("batch", np.arange(50)).tolist()
        )
        for match, message in (
            (("batch", "lane"), "expected each key once"),
            (("line",), "match: got 'line', the cell_type column, expected 'cell_type', which is always matched"),
        ):
            with pytest.raises(ConfigError, match=message):
                MatchKeys(cells, ("cell_type", *match))
