"""Verdicts by dataset and cell type equal those of a filter of each context's cells alone."""

import itertools

import numpy as np
import pandas as pd
import pytest

from lazypert import KnockdownFilterConfig, OnTargetKnockdownFilter, PerturbationConcatSource
from lazypert.errors import ConfigError, NotCountsError
from tests.support.knockdown import cell_load_mask, reference_filter
from tests.support.screens import CONTROL, in_store_order, make_screen, source_of

GENES = ["A", "B", "C", "D", "E"]
DIRECTIONS = ["down", "up", "both"]
MATCHES = ["all", "cell_type", "batch"]
VALUES = {"counts": {}, "counts per 10,000": {"normalise_depth": True}, "log1p values": {"layer": "log1p"}}
CONTEXTS = [(), ("dataset",), ("cell_type",), ("dataset", "cell_type")]


def screen(seed, n=160, *, depth=1.0, missing=0.04):
    """Counts in which targets fall, rise or stay; E is silent in controls, and depths differ between perturbations."""
    rng = np.random.default_rng(seed)

    def pick(*names):
        drawn = np.array(names, dtype=object)[rng.integers(0, len(names), n)]
        drawn[rng.random(n) < missing] = None
        return drawn

    perturbation, cell_type, batch = pick(CONTROL, CONTROL, *GENES, "none"), pick("T", "U"), pick("b1", "b2", "b3")
    # Cell type U has no controls in some screens, so that only its own cells cannot be judged.
    if seed % 4 == 0:
        perturbation[(perturbation == CONTROL) & (cell_type == "U")] = "A"
    rate = rng.choice([3.0, 8.0], (n, len(GENES))) * rng.choice([1.0, 0.25], n)[:, None] * depth
    for j, gene in enumerate(GENES):
        for where in ("T", "U"):
            rate[(perturbation == gene) & (cell_type == where), j] *= rng.choice([0.05, 0.2, 1, 6])
    rate[perturbation == CONTROL, GENES.index("E")] = 0
    counts = rng.poisson(rate)
    total = counts.sum(axis=1, keepdims=True)
    obs = {"perturbation": perturbation.tolist(), "cell_type": cell_type.tolist(), "batch": batch.tolist()}
    logged = np.log1p(counts / np.where(total > 0, total, 1) * 50)
    return make_screen(obs, counts, genes=GENES, layers={"log1p": logged, "scaled": logged - logged.mean()})


def labels_of(adata, dataset="all"):
    frame = adata.obs[["perturbation", "cell_type", "batch"]].astype(object)
    return frame.where(frame.notna(), None).assign(dataset=dataset).reset_index(drop=True)


def check(source, dense, frame, genes, **options):
    config = KnockdownFilterConfig(**options)
    result = OnTargetKnockdownFilter(config).run(source)
    mask, table = reference_filter(dense, frame, genes, config)
    actual = result.table.assign(reason=result.table["reason"].str.partition(" (")[0])
    pd.testing.assert_frame_equal(actual, table, check_dtype=False, rtol=1e-6)  # log1p values are stored as float32
    assert (result.mask == mask).all()
    return result


N_SCREENS = 40
N_QUICK = 4
"""Random screens, and those of them that the default run covers, each with a third of its combinations."""


@pytest.fixture(
    scope="module", params=[pytest.param(i, marks=[pytest.mark.slow] * (i >= N_QUICK)) for i in range(N_SCREENS)]
)
def one(request, tmp_path_factory):
    """A random screen in store order, and its number."""
    adata = screen(request.param)
    source = source_of(adata, tmp_path_factory.mktemp("one"))
    return source, in_store_order(source, adata), request.param


def compare(one, match, direction, units):
    source, adata, seed = one
    options = {"min_cells": 1 + seed % 3, "residual_expression": 0.5, "verdict_by": CONTEXTS[seed % 4]}
    values = VALUES[units]
    dense = (adata.layers["log1p"] if "layer" in values else adata.X).toarray()
    result = check(
        source, dense, labels_of(adata), GENES, **options, control_match=match, direction=direction, **values
    )
    assert result.units == units
    assert f"by means of {units}" in repr(result)


def test_random_screens_equal_the_reference(one):
    seed = one[2]
    for number, match in enumerate(MATCHES):
        compare(one, match, DIRECTIONS[(seed + number) % 3], list(VALUES)[(seed // 3 + number) % 3])


@pytest.mark.slow
def test_every_combination_of_options_equals_the_reference(one):
    for match, direction, units in itertools.product(MATCHES, DIRECTIONS, VALUES):
        compare(one, match, direction, units)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two screens of depths 1:5; the second lacks gene D, and each has other failures."""
    folder, screens = tmp_path_factory.mktemp("two"), []
    for seed, depth, columns in ((101, 1, [0, 1, 2, 3, 4]), (102, 5, [4, 2, 0, 1])):
        adata = screen(seed, n=300, depth=depth)[:, columns].copy()
        source = source_of(adata, folder, name=f"screen{len(screens)}")
        screens.append((source, in_store_order(source, adata)))
    return screens


@pytest.mark.parametrize("by", CONTEXTS, ids="-".join)
@pytest.mark.parametrize("match", MATCHES)
def test_two_datasets_equal_the_reference(two, by, match):
    source = PerturbationConcatSource([source for source, _ in two], join="outer")
    genes = source.get_gene_names()
    dense = np.concatenate([adata.to_df().reindex(columns=genes).to_numpy() for _, adata in two])
    frame = pd.concat([labels_of(adata, f"screen{i}") for i, (_, adata) in enumerate(two)], ignore_index=True)
    for direction in DIRECTIONS:
        options = {"control_match": match, "verdict_by": by, "direction": direction, "min_cells": 2}
        result = check(source, dense, frame, genes, **options, residual_expression=0.6)
        assert list(result.table.columns[: len(by) + 1]) == [*by, "perturbation"]


EFFECT = {"shallow": {"A": 0.1, "B": 0.1, "C": 1.0}, "deep": {"A": 1.0, "B": 0.1, "C": 0.1}}


@pytest.fixture(scope="module")
def screens(tmp_path_factory):
    """Screens of depths 1:5 with the effects above."""
    rng, folder, out = np.random.default_rng(5), tmp_path_factory.mktemp("depths"), {}
    for name, depth in (("shallow", 1), ("deep", 5)):
        perturbation = np.repeat([CONTROL, "A", "B", "C"], 60)
        rate = np.full((240, 4), 10.0 * depth)
        for j, gene in enumerate("ABC"):
            rate[perturbation == gene, j] *= EFFECT[name][gene]
        obs = {"perturbation": perturbation.tolist(), "cell_type": ["T"] * 240, "batch": ["b"] * 240}
        adata = make_screen(obs, rng.poisson(rate), genes=["A", "B", "C", "x"])
        source = source_of(adata, folder, name=name)
        out[name] = source, in_store_order(source, adata)
    return out


class TestDepths:
    """Two datasets of depths 1:5; each of three knockdowns works in one dataset, and B in both."""

    def test_verdicts_of_each_dataset_are_those_of_cell_load(self, screens):
        both = PerturbationConcatSource([source for source, _ in screens.values()])
        result = OnTargetKnockdownFilter(KnockdownFilterConfig(verdict_by=("dataset",))).run(both)
        verdicts = result.table.pivot(index="perturbation", columns="dataset", values="passed")
        assert verdicts.to_dict() == {
            name: {gene: effect < 1 for gene, effect in effects.items()} for name, effects in EFFECT.items()
        }
        expected = [
            cell_load_mask(adata.X.toarray(), adata.obs["perturbation"].to_numpy(dtype=object), list(adata.var_names))
            for _, adata in screens.values()
        ]
        assert (result.mask == np.concatenate(expected)).all()
        assert "by dataset pass" in repr(result)
        by_force = reference_filter(
            np.concatenate([adata.X.toarray() for _, adata in screens.values()]),
            pd.concat([labels_of(adata, name) for name, (_, adata) in screens.items()], ignore_index=True),
            ["A", "B", "C", "x"],
            result.config,
        )
        assert (result.mask == by_force[0]).all()
        assert result.table["passed"].tolist() == by_force[1]["passed"].tolist()
        alone = [OnTargetKnockdownFilter().run(source) for source, _ in screens.values()]
        assert (result.mask == np.concatenate([single.mask for single in alone])).all()

    def test_one_verdict_on_all_datasets_is_another(self, screens):
        both = PerturbationConcatSource([source for source, _ in screens.values()])
        table = OnTargetKnockdownFilter().run(both).table.set_index("perturbation")
        # Depth decides: C does not work in the shallow dataset, whose cells look low beside the mean of all controls.
        assert table["passed"].to_dict() == {"A": False, "B": True, "C": True}


def small(folder, own, controls, *, others=None, layers=None, cell_types=None, genes=("A", "x")):
    """A source of cells of perturbation A and controls, with counts of gene A, and of gene x."""
    n = len(own) + len(controls)
    obs = {"perturbation": ["A"] * len(own) + [CONTROL] * len(controls), "batch": ["b"] * n}
    obs["cell_type"] = ["T"] * n if cell_types is None else cell_types
    counts = np.stack([[*own, *controls], np.zeros(n) if others is None else others], axis=1)
    return source_of(make_screen(obs, counts, genes=list(genes), layers=layers), folder)


class TestStrata:
    def test_a_cell_type_without_controls_does_not_decide_for_others(self, tmp_path):
        source = small(tmp_path, [0, 0, 9], [4, 4], cell_types=["T", "T", "U", "T", "T"])
        config = KnockdownFilterConfig(control_match="cell_type", min_cells=2)
        result = OnTargetKnockdownFilter(config).run(source)
        row = result.table.iloc[0]
        assert (row["n_cells"], row["n_compared"], row["n_kept"], row["residual_expression"]) == (3, 2, 2, 0)
        alone = KnockdownFilterConfig(control_match="cell_type", min_cells=2, verdict_by=("cell_type",))
        table = OnTargetKnockdownFilter(alone).run(source).table.set_index("cell_type")
        assert table["reason"].to_dict() == {"T": "passed", "U": "no controls to compare with"}

    def test_nan_in_one_stratum_does_not_decide_for_others(self, tmp_path):
        types = ["T", "T", "U", "U", "T", "T", "U", "U"]
        source = small(tmp_path, [0, 0, 0, 0], [4, 4, np.nan, 4], cell_types=types)
        config = KnockdownFilterConfig(control_match="cell_type", min_cells=2)
        row = OnTargetKnockdownFilter(config).run(source).table.iloc[0]
        assert (row["n_compared"], row["n_kept"], row["control_mean"]) == (2, 2, 4)


class TestScales:
    def test_depth_alone_does_not_pass(self, tmp_path):
        # A quarter of the depth, and the same composition.
        source = small(tmp_path, [1] * 40, [4] * 40, others=[9] * 40 + [36] * 40)
        assert OnTargetKnockdownFilter().run(source).table["passed"].all()
        row = OnTargetKnockdownFilter(KnockdownFilterConfig(normalise_depth=True)).run(source).table.iloc[0]
        assert not row["passed"]
        assert (row["residual_expression"], row["control_mean"]) == (pytest.approx(1), pytest.approx(1000))

    def test_negative_values_are_refused(self, tmp_path):
        source = source_of(screen(1), tmp_path)
        with pytest.raises(ConfigError, match=r"got 'scaled', values from -.*z-scores.*layer=None or layer='log1p'"):
            OnTargetKnockdownFilter(KnockdownFilterConfig(layer="scaled")).run(source)

    def test_log1p_values_have_no_depth(self, tmp_path):
        source = source_of(screen(1), tmp_path)
        with pytest.raises(NotCountsError, match=r"normalise_depth: got True .*log1p.*another matrix: layer=None\."):
            OnTargetKnockdownFilter(KnockdownFilterConfig(layer="log1p", normalise_depth=True)).run(source)

    def test_datasets_of_different_scales_are_judged_one_by_one(self, tmp_path):
        logged = screen(3)
        logged.X = logged.layers["log1p"]
        both = PerturbationConcatSource(
            [source_of(screen(2), tmp_path, name="a"), source_of(logged, tmp_path, name="b")]
        )
        with pytest.raises(
            ConfigError, match=r"differ in scale \(counts in .*log1p values in .*verdict_by=\('dataset',"
        ):
            OnTargetKnockdownFilter().run(both)
        result = OnTargetKnockdownFilter(KnockdownFilterConfig(verdict_by=["dataset"])).run(both)
        assert result.units == "counts and log1p values"


class TestDirection:
    @pytest.mark.parametrize(
        ("own", "direction", "reason"),
        [
            ([20, 20, 5, 0], "up", "passed"),
            ([20, 20, 5, 0], "both", "passed"),
            ([20, 20, 5, 0], "down", "residual expression too high (2.812, must be below 0.4)"),
            ([10, 10, 10, 10], "up", "residual expression too low (2.500, must be above 2.5)"),
            ([4, 4, 4, 4], "both", "residual expression too close to 1 (1.000, must be below 0.4 or above 2.5)"),
            ([0, 0, 4, 0], "both", "passed"),
        ],
    )
    def test_ratios_must_be_strictly_beyond_their_limits(self, tmp_path, own, direction, reason):
        config = KnockdownFilterConfig(direction=direction, min_cells=2, residual_expression=0.4)
        result = OnTargetKnockdownFilter(config).run(small(tmp_path, own, [4, 4]))
        assert result.table["reason"].tolist() == [reason]
        if reason == "passed":
            assert result.table["n_kept"].tolist() == [2 if own[0] == 20 else 3]


@pytest.mark.parametrize("value", ["donor", ("donor",), ("dataset", "dataset")])
def test_verdict_by_is_checked(value):
    with pytest.raises(ConfigError, match="verdict_by: got"):
        KnockdownFilterConfig(verdict_by=value)
