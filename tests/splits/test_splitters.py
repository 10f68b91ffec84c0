"""Splits have exact counts, are complete, and treat all cells equally."""

from fractions import Fraction
from math import ceil, floor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import (
    FewShotSplitter,
    FewShotSplitterConfig,
    RandomSplitter,
    RandomSplitterConfig,
    ZeroShotSplitter,
    ZeroShotSplitterConfig,
)
from lazypert.errors import ConfigError, LabelNotFoundError
from lazypert.screen.groups import Groups
from lazypert.screen.roles import AXES
from lazypert.splits.names import SPLITS
from lazypert.splits.options import SplitOptions
from lazypert.splits.split_result import split_by_run
from lazypert.splits.splitters import make_splitter
from tests.support.screens import CONTROL, design_cells, make_cells, random_cells, source_of

SEEDS = [0, 1, 2, 42, 1000, 2**31]


def zeroshot(*held, **options):
    return ZeroShotSplitter(ZeroShotSplitterConfig(held_out_cell_types=held, **options))


def fewshot(*held, **options):
    return FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=held, **options))


def random(**options):
    return RandomSplitter(RandomSplitterConfig(**options))


def sizes(split):
    return tuple(len(split[name]) for name in SPLITS)


def all_rows(split):
    return np.concatenate([np.asarray(split[name]) for name in SPLITS])


@pytest.fixture(scope="module")
def design():
    return design_cells()


class TestDesign:
    """The counts that the splitters promise for a design of 3 cell types x 6 perturbations x 50 cells."""

    @pytest.mark.parametrize("seed", SEEDS)
    def test_zero_shot(self, design, seed):
        split = zeroshot("Neuron", seed=seed).split(design)
        assert sizes(split) == (533, 67, 300)
        assert set(design.labels("cell_type", split.test_indices)) == {"Neuron"}
        assert "Neuron" not in set(design.labels("cell_type", all_rows(split)[:600]))

    @pytest.mark.parametrize("seed", SEEDS)
    def test_few_shot(self, design, seed):
        split = fewshot("BRCA1", "TP53", seed=seed).split(design)
        assert sizes(split) == (550, 50, 300)
        assert set(design.labels("perturbation", split.test_indices)) == {"BRCA1", "TP53"}
        assert CONTROL not in set(design.labels("perturbation", split.valid_indices))
        assert list(design.labels("perturbation", split.train_indices)).count(CONTROL) == 150

    @pytest.mark.parametrize("seed", SEEDS)
    def test_random(self, design, seed):
        assert sizes(random(seed=seed).split(design)) == (720, 90, 90)

    @pytest.mark.parametrize("make", [lambda: zeroshot("Neuron"), lambda: fewshot("MYC"), random], ids=SPLITS)
    def test_does_not_depend_on_the_order_of_the_store(self, reference, tmp_path, make):
        in_file_order = source_of(reference.adata.copy(), tmp_path, order="source")
        assert in_file_order.groups.row_order is not None
        assert sizes(make().split(in_file_order)) == sizes(make().split(reference.source))
        for source in (in_file_order, reference.source):
            assert sorted(all_rows(make().split(source)).tolist()) == list(range(900))


class TestRules:
    @given(
        st.integers(0, 120),
        st.integers(0, 50),
        st.sampled_from([(0.8, 0.1), (0.5, 0.1), (0.3, 0.3), (0.5, 0.5), (0.7, 0.0), (0, 1), (1 / 3, 1 / 3)]),
    )
    @settings(max_examples=25, deadline=None)
    def test_random_splits_floor_running_totals(self, n, seed, fractions):
        cells = random_cells(n, seed, missing=0.1, control=None) if n else make_cells(perturbation=[], control=None)
        split = random(train_frac=fractions[0], valid_frac=fractions[1], seed=seed).split(cells)
        labelled = cells.frame.dropna(subset=["cell_type", "perturbation"]).index
        train, valid = (Fraction(str(f)) for f in fractions)
        m = len(labelled)
        first, second = floor(m * train), floor(m * (train + valid))
        assert sizes(split) == (first, second - first, m - second)
        assert sorted(all_rows(split).tolist()) == labelled.tolist()

    @given(
        st.integers(10, 120), st.integers(0, 50), st.sampled_from([(0.8, 0.1), (0.3, 0.6), (1.0, 0.0), (1 / 3, 1 / 7)])
    )
    @settings(max_examples=25, deadline=None)
    def test_held_out_splits_floor_the_training_cells(self, n, seed, fractions):
        cells = random_cells(n, seed, missing=0.1)
        frame = cells.frame.dropna(subset=["cell_type", "perturbation"])
        if not {"P0", CONTROL} <= set(frame["perturbation"]) or "T0" not in set(frame["cell_type"]):
            return
        train, valid = (Fraction(str(f)) for f in fractions)
        options = {"train_frac": fractions[0], "valid_frac": fractions[1], "seed": seed}

        split = zeroshot("T0", **options).split(cells)
        rest = frame.index[frame["cell_type"] != "T0"]
        assert sorted(split.test_indices) == frame.index[frame["cell_type"] == "T0"].tolist()
        assert len(split.train_indices) == floor(len(rest) * train / (train + valid))
        assert sorted([*split.train_indices, *split.valid_indices]) == rest.tolist()

        split = fewshot("P0", **options).split(cells)
        perturbation = frame["perturbation"]
        control = frame.index[perturbation == CONTROL]
        rest = frame.index[~perturbation.isin(["P0", CONTROL])]
        assert sorted(split.test_indices) == frame.index[perturbation == "P0"].tolist()
        assert len(split.train_indices) - len(control) == floor(len(rest) * train / (train + valid))
        assert set(control) <= set(split.train_indices)
        assert sorted([*split.train_indices, *split.valid_indices]) == sorted([*rest, *control])

    @pytest.mark.parametrize(
        ("train", "n", "expected"),
        [(0.1, 10, 1), (0.7, 10, 7), (0.57, 100, 57), (0.29, 100, 29), (1.1e-3, 100_000, 110)],
        ids=str,
    )
    def test_fractions_are_exact(self, train, n, expected):
        """0.29 * 100 is 28.999999999999996 in floats."""
        cells = make_cells(perturbation=["A"] * n, control=None)
        assert len(random(train_frac=train, valid_frac=0).split(cells).train_indices) == expected

    def test_fractions_with_many_digits_are_exact_for_many_cells(self):
        """Their exact numerators times the number of cells overflow 64 bits."""
        n = 1_000_000
        codes = dict.fromkeys(AXES) | {"perturbation": np.arange(n) % 3}
        labels = {axis: [] for axis in AXES} | {"perturbation": ["A", "B", "C"]}
        hashes = np.random.default_rng(0).integers(0, 2**64, n, dtype=np.uint64)
        groups = Groups.from_codes(codes, labels, design_cells().groups.roles, hashes)
        split = random(train_frac=1 / 3, valid_frac=2 / 7).split(SimpleNamespace(groups=groups))
        assert sizes(split) == (333_333, 285_714, 380_953)

    def test_fractions_may_be_numpy_floats(self, design):
        assert sizes(random(train_frac=np.float64(0.8), valid_frac=np.float64(0.1)).split(design)) == (720, 90, 90)

    @pytest.mark.parametrize("fraction", [0.5, 0.3, 0.01, 1.0])
    def test_validation_can_be_subsampled(self, design, fraction):
        full = fewshot("MYC").split(design)
        subsampled = fewshot("MYC", val_subsample_fraction=fraction).split(design)
        assert len(subsampled.valid_indices) == ceil(len(full.valid_indices) * Fraction(str(fraction)))
        assert set(subsampled.valid_indices) <= set(full.valid_indices)
        assert np.asarray(subsampled.train_indices).tolist() == np.asarray(full.train_indices).tolist()
        assert np.asarray(subsampled.test_indices).tolist() == np.asarray(full.test_indices).tolist()

    def test_depends_on_the_seed(self, design):
        first, again, other = (random(seed=seed).split(design) for seed in (1, 1, 2))
        assert all_rows(first).tolist() == all_rows(again).tolist()
        assert set(first.valid_indices) != set(other.valid_indices)


class TestFairness:
    def test_every_cell_is_equally_likely_to_validate(self):
        cells = make_cells(perturbation=["A"] * 7 + ["B"] * 13 + [CONTROL] * 10)
        n = 800
        hits = np.zeros(30)
        for seed in range(n):
            hits[np.asarray(random(seed=seed).split(cells).valid_indices)] += 1
        assert hits.sum() == 3 * n
        assert (np.abs(hits - n * 0.1) < 6 * np.sqrt(n * 0.1 * 0.9)).all()

    def test_the_only_cell_of_a_group_is_equally_likely_to_train(self):
        cells = make_cells(perturbation=["A"] + ["B"] * 4, control=None)
        hits = np.zeros(5)
        for seed in range(1000):
            split = random(train_frac=0.8, valid_frac=0.2, seed=seed).split(cells)
            hits[np.asarray(split.train_indices)] += 1
        assert hits.sum() == 4000
        assert (np.abs(hits - 800) < 80).all()

    @pytest.mark.parametrize("seed", SEEDS)
    def test_groups_are_split_evenly(self, design, seed):
        """Of each group of 50 cells, 5 validate."""
        split = random(seed=seed).split(design)
        frame = design.frame.iloc[np.asarray(split.valid_indices)]
        assert frame.groupby(["cell_type", "perturbation"]).size().tolist() == [5] * 18

    def test_rounding_favours_no_group(self):
        """Each of ten groups of one cell validates with about a tenth of the seeds."""
        cells = make_cells(perturbation=[f"P{i}" for i in range(10)], control=None)
        hits = np.zeros(10)
        for seed in range(1000):
            split = random(seed=seed).split(cells)
            assert sizes(split) == (8, 1, 1)
            hits[np.asarray(split.valid_indices)] += 1
        assert (np.abs(hits - 100) < 50).all()


class TestResult:
    def test_is_indexed_by_split_name(self, design):
        split = random().split(design)
        assert split["val"] is split["valid"] is split.valid_indices
        assert repr(split) == "SplitResult(train 720, valid 90, test 90)"
        with pytest.raises(ConfigError, match="'validation'"):
            split["validation"]

    def test_keep_applies_a_mask_to_every_split(self, design):
        split = random().split(design)
        mask = np.arange(900) % 3 > 0
        for name in SPLITS:
            rows = np.asarray(split[name])
            assert np.asarray(split.keep(mask)[name]).tolist() == rows[mask[rows]].tolist()

    def test_unlabelled_cells_are_in_no_split(self):
        cells = make_cells(
            perturbation=["A", None, CONTROL, "A", CONTROL, "B"], cell_type=["T", "T", None, "U", "T", "T"]
        )
        for splitter in (random(train_frac=0.5), zeroshot("T"), fewshot("A")):
            assert sorted(all_rows(splitter.split(cells)).tolist()) == [0, 3, 4, 5]

    def test_runs_can_be_assigned_by_name(self, design):
        names = ["train", None, "test"] * (len(design.groups.start) // 3)
        split = split_by_run(design.groups, names)
        assert sizes(split) == (300, 0, 300)


class TestErrors:
    @pytest.mark.parametrize(
        ("splitter", "near"),
        [(zeroshot("neuron"), "Neuron"), (fewshot("MYC", "BRCA"), "BRCA1")],
        ids=["zero-shot", "few-shot"],
    )
    def test_unknown_labels_raise_an_error_with_near_matches(self, design, splitter, near):
        with pytest.raises(LabelNotFoundError, match=f"Did you mean '{near}'"):
            splitter.split(design)

    def test_controls_cannot_be_held_out(self, design):
        with pytest.raises(ConfigError, match=f"held_out_perturbations: got '{CONTROL}', which marks the controls"):
            fewshot("MYC", CONTROL).split(design)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: random(train_frac=-0.1), "train_frac: got -0.1"),
            (lambda: random(valid_frac=1.1), "valid_frac: got 1.1"),
            (lambda: random(train_frac=float("nan")), "train_frac: got nan"),
            (lambda: random(train_frac=0.8, valid_frac=0.3), r"got 0\.8 \+ 0\.3"),
            (lambda: random(seed=-1), "seed: got -1"),
            (lambda: zeroshot(), "held_out_cell_types: got"),
            (lambda: ZeroShotSplitterConfig(held_out_cell_types={"Neuron"}), "held_out_cell_types: got {'Neuron'}"),
            (lambda: fewshot(), "held_out_perturbations: got"),
            (lambda: fewshot(1), "held_out_perturbations: got"),
            (
                lambda: fewshot("A", train_frac=0, valid_frac=0),
                r"got 0 \+ 0, expected more than 0",
            ),
            (
                lambda: zeroshot("A", train_frac=0.0, valid_frac=0.0),
                r"got 0\.0 \+ 0\.0, expected more than 0",
            ),
            (lambda: fewshot("A", val_subsample_fraction=0), "val_subsample_fraction: got 0"),
            (lambda: fewshot("A", val_subsample_fraction=1.5), "val_subsample_fraction: got 1.5"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_options_are_checked_on_construction(self, make, message):
        with pytest.raises(ConfigError, match=message):
            make()

    def test_exact_fractions_may_add_up_to_one(self):
        """0.7 + 0.2 + 0.1 is 0.9999999999999999 in floats, but one in tenths."""
        random(train_frac=0.9, valid_frac=0.1)
        random(train_frac=0.7, valid_frac=0.3)


class TestMakeSplitter:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, random()),
            ({"split_mode": "zeroshot", "held_out_cell_types": ("T",), "seed": 3}, zeroshot("T", seed=3)),
            ({"split_mode": "fewshot", "held_out_perturbations": ("A",), "seed": 3}, fewshot("A", seed=3)),
        ],
        ids=["random", "zero-shot", "few-shot"],
    )
    def test_makes_the_splitter_of_the_mode(self, options, expected):
        splitter = make_splitter(SplitOptions(**options))
        assert type(splitter) is type(expected)
        assert splitter.config == expected.config

    def test_held_out_labels_need_their_mode(self):
        options = SplitOptions(split_mode="fewshot", held_out_perturbations=("A",), held_out_cell_types=("T",))
        with pytest.raises(ConfigError, match=r"held_out_cell_types: got \('T',\) with mode 'fewshot'.*'zeroshot'"):
            make_splitter(options)

    def test_unknown_modes_are_refused(self):
        with pytest.raises(ConfigError, match=r"split_mode: got 'few-shot'.*Did you mean 'fewshot'"):
            make_splitter(SplitOptions(split_mode="few-shot"))

    def test_repr_shows_what_differs_from_the_defaults(self):
        expected = "FewShotSplitter(FewShotSplitterConfig(seed=1, held_out_perturbations=('A',)))"
        assert repr(fewshot("A", seed=1)) == expected
        assert repr(random()) == "RandomSplitter(RandomSplitterConfig())"
