"""Knockdown quality control equals its three stages written out over a dense matrix."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from lazypert import (
    BatchControlMapping,
    KnockdownFilterConfig,
    OnTargetKnockdownFilter,
    PerturbationAnnDataSource,
    PerturbationConcatSource,
    PerturbationPipeline,
    PerturbationPipelineConfig,
    PerturbationSourceConfig,
    is_on_target_knockdown,
)
from lazypert.errors import ColumnNotFoundError, ConfigError
from tests.support.knockdown import reference_filter
from tests.support.screens import CONTROL, in_store_order, make_screen, real_screen, source_of

GENES = ["A", "B", "C", "B", "D", "E"]  # B twice
LABELS = [CONTROL, "A", "B", "C", "D", "E", "unmeasured", "unassigned", "A+B"]


def check(source, dense, frame, genes, *, exact=True, control=CONTROL, **options):
    """Compare a source's result with `reference_filter` on the same cells, and return it."""
    config = KnockdownFilterConfig(**options)
    result = OnTargetKnockdownFilter(config).run(source)
    mask, table = reference_filter(dense, frame, genes, config, control)
    actual = result.table.assign(reason=result.table["reason"].str.partition(" (")[0])
    pd.testing.assert_frame_equal(
        actual, table, check_dtype=False, check_exact=exact, **({} if exact else {"rtol": 1e-12})
    )
    assert (result.mask == mask).all()
    assert result.n_unlabelled == int((frame["perturbation"].isna() | frame["cell_type"].isna()).sum())
    return result


def frame_of(adata, dataset="all"):
    frame = adata.obs[["perturbation", "cell_type", "batch"]].astype(object)
    return frame.where(frame.notna(), None).assign(dataset=dataset).reset_index(drop=True)


def random_screen(seed, n=400, labels=LABELS, missing=0.05):
    """Counts in which about half of the perturbations lower their target; E is never expressed."""
    rng = np.random.default_rng(seed)

    def pick(names):
        drawn = np.array(names, dtype=object)[rng.integers(0, len(names), n)]
        drawn[rng.random(n) < missing] = None
        return drawn.tolist()

    obs = {"perturbation": pick(labels), "cell_type": pick(["T", "U"]), "batch": pick(["b1", "b2"])}
    counts = rng.poisson(4, (n, len(GENES)))
    counts[:, GENES.index("E")] = 0
    for gene in "ABD":
        hit = np.array([p == gene for p in obs["perturbation"]])
        counts[hit, GENES.index(gene)] = rng.poisson(rng.choice([0.2, 0.8, 4]), hit.sum())
    lognorm = np.round(rng.random((n, len(GENES))) * 8) / 8 * (counts > 0)
    return make_screen(
        obs,
        counts,
        genes=[f"id{i}" for i in range(len(GENES))],
        var={"gene_name": GENES},
        layers={"eighths": lognorm},
    )


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Source of a random screen, and its cells in store order; each screen is converted once."""
    cache = {}

    def get(seed, *, order="grouped", **options):
        key = (seed, order, *options.items())
        if key not in cache:
            screen = random_screen(seed, **options)
            source = source_of(screen, tmp_path_factory.mktemp("qc"), order=order)
            cache[key] = source, in_store_order(source, screen)
        return cache[key]

    return get


class TestRandomScreens:
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("order", ["grouped", "source"])
    @pytest.mark.parametrize(
        "options",
        [
            {"min_cells": 5},
            {"min_cells": 20, "cell_residual_expression": 0.1},
            {"residual_expression": 1.0, "min_cells": 1},
        ],
        ids=["defaults", "strict cells", "lax means"],
    )
    def test_result_equals_the_three_stages(self, converted, seed, order, options):
        source, adata = converted(seed, order=order)
        result = check(source, adata.X.toarray(), frame_of(adata), GENES, var_gene_col="gene_name", **options)
        assert len(result.table) == len(LABELS) - 1

    @pytest.mark.parametrize("match", ["cell_type", "batch"])
    @pytest.mark.parametrize("seed", range(2))
    def test_controls_can_be_matched(self, converted, seed, match):
        source, adata = converted(seed, n=800, missing=0)
        options = {"control_match": match, "min_cells": 3, "residual_expression": 0.5}
        check(source, adata.X.toarray(), frame_of(adata), GENES, exact=False, var_gene_col="gene_name", **options)

    def test_a_layer_can_be_read(self, converted):
        source, adata = converted(0)
        options = {"var_gene_col": "gene_name", "residual_expression": 1.0, "min_cells": 1}
        result = check(source, adata.layers["eighths"].toarray(), frame_of(adata), GENES, layer="eighths", **options)
        assert not result.table.equals(check(source, adata.X.toarray(), frame_of(adata), GENES, **options).table)

    def test_the_layer_of_the_source_is_read_by_default(self, converted, tmp_path):
        _, adata = converted(0)
        path = tmp_path / "s.h5ad"
        adata.copy().write_h5ad(path)
        options = {"var_gene_col": "gene_name", "residual_expression": 1.0, "min_cells": 1}
        config = PerturbationSourceConfig(file_path=path, layer="eighths")
        source = PerturbationAnnDataSource(config)
        ordered = in_store_order(source, adata)
        check(source, ordered.layers["eighths"].toarray(), frame_of(ordered), GENES, **options)
        pipeline = PerturbationPipeline(
            PerturbationPipelineConfig(enable_knockdown_filter=True, layer="eighths", **options, sentence_size=2)
        )
        expected = OnTargetKnockdownFilter(KnockdownFilterConfig(layer="eighths", **options)).run(source)
        for screens in (path, source):
            result = pipeline.setup(screens).knockdown
            assert (result.mask == expected.mask).all()
            assert result.table.equals(expected.table)
            assert result.config.layer == "eighths"

    def test_gene_names_can_come_from_the_var_index(self, tmp_path):
        screen = random_screen(2)
        screen.var_names = ["A", "B", "C", "x", "D", "E"]
        source = source_of(screen, tmp_path)
        adata = in_store_order(source, screen)
        check(source, adata.X.toarray(), frame_of(adata), list(adata.var_names), min_cells=3)


@pytest.fixture(scope="module")
def two_screens(tmp_path_factory):
    """Two screens; the second lacks gene D and has the other genes in another order."""
    folder, screens = tmp_path_factory.mktemp("several"), []
    for seed, columns, genes in ((5, [0, 1, 2, 4], ["A", "B", "C", "D"]), (6, [2, 0, 4, 1], ["C", "A", "x", "B"])):
        screen = random_screen(seed, n=300)[:, columns].copy()
        screen.var_names = genes
        source = source_of(screen, folder, name=f"screen{len(screens)}")
        screens.append((source, in_store_order(source, screen)))
    return screens


class TestSeveralSources:
    @pytest.mark.parametrize("join", ["inner", "outer"])
    @pytest.mark.parametrize("match", ["all", "cell_type"])
    def test_result_equals_the_three_stages(self, two_screens, join, match):
        source = PerturbationConcatSource([source for source, _ in two_screens], join=join)
        genes = sorted({"A", "B", "C"} | ({"D", "x"} if join == "outer" else set()))
        assert sorted(source.get_gene_names()) == genes
        dense = [adata.to_df().reindex(columns=genes).to_numpy() for _, adata in two_screens]  # NaN where not measured
        frame = pd.concat(
            [frame_of(adata, f"screen{i}") for i, (_, adata) in enumerate(two_screens)], ignore_index=True
        )
        options = {"min_cells": 3, "control_match": match, "residual_expression": 0.6}
        check(source, np.concatenate(dense), frame, genes, exact=False, **options)


class TestRules:
    def run(self, folder, own, controls, **options):
        """Table row of perturbation A, and numbers of the cells that pass, for given counts of gene A."""
        obs = {"perturbation": ["A"] * len(own) + [CONTROL] * len(controls)}
        obs |= {"cell_type": ["T"] * len(obs["perturbation"]), "batch": ["b"] * len(obs["perturbation"])}
        screen = make_screen(obs, np.array([*own, *controls])[:, None], genes=["A"])
        source = source_of(screen, folder)
        result = OnTargetKnockdownFilter(KnockdownFilterConfig(**options)).run(source)
        passing = source.obs_names(np.arange(source.n_rows))[result.mask]
        return result.table.iloc[0], {int(name.removeprefix("cell")) for name in passing}

    @pytest.mark.parametrize(("limit", "passed"), [(0.25, False), (0.26, True)])
    def test_the_mean_ratio_must_be_strictly_below_its_limit(self, tmp_path, limit, passed):
        row, _ = self.run(tmp_path, [1, 1, 1], [4, 4], residual_expression=limit, min_cells=1)
        assert row["residual_expression"] == 0.25
        assert bool(row["passed"]) is passed

    def test_the_ratio_of_a_cell_must_be_strictly_below_its_limit(self, tmp_path):
        row, passing = self.run(
            tmp_path, [0, 1, 2, 3], [4, 4], residual_expression=1, cell_residual_expression=0.5, min_cells=1
        )
        assert passing == {0, 1, 4, 5}  # 2 / 4 is not below 0.5; controls stay
        assert (row["n_kept"], row["n_cells"]) == (2, 4)

    def test_a_batch_without_controls_is_compared_with_its_cell_type(self, tmp_path):
        obs = {"perturbation": ["A", "A", CONTROL, CONTROL], "cell_type": ["T"] * 4, "batch": ["b1", "b2", "b1", "b1"]}
        screen = make_screen(obs, np.array([1, 1, 4, 12])[:, None], genes=["A"])
        options = KnockdownFilterConfig(control_match="batch", min_cells=1)
        row = OnTargetKnockdownFilter(options).run(source_of(screen, tmp_path)).table.iloc[0]
        assert (row["control_mean"], row["residual_expression"], row["n_kept"]) == (8, 0.125, 2)

    @pytest.mark.parametrize(("min_cells", "expected"), [(2, {0, 1, 2, 3}), (3, {2, 3})])
    def test_exactly_min_cells_are_enough(self, tmp_path, min_cells, expected):
        row, passing = self.run(tmp_path, [0, 0], [4, 4], min_cells=min_cells)
        assert passing == expected
        assert row["reason"] == ("passed" if min_cells == 2 else "too few cells left (2, must be at least 3)")

    def test_a_control_mean_of_zero_drops_the_perturbation(self, tmp_path):
        row, passing = self.run(tmp_path, [0, 0], [0, 0], min_cells=1)
        assert row["reason"] == "target not expressed in controls"
        assert passing == {2, 3}

    def test_process_returns_the_mask(self, reference):
        filtering = OnTargetKnockdownFilter(KnockdownFilterConfig(var_gene_col="gene_name"))
        assert (filtering.process(reference.source) == filtering.run(reference.source).mask).all()

    def test_all_perturbations_of_the_reference_screen_pass(self, reference):
        config = KnockdownFilterConfig(var_gene_col="gene_name")
        result = OnTargetKnockdownFilter(config).run(reference.source)
        assert result.table["passed"].all()
        assert "5 of 5 perturbations pass" in repr(result)
        assert repr(result).endswith("by means of counts)")


@pytest.fixture(scope="module")
def schraivogel(tmp_path_factory):
    path = real_screen("schraivogel2020_tapseq_k562_counts.h5ad")
    config = PerturbationSourceConfig(file_path=path, cache_dir=tmp_path_factory.mktemp("schraivogel"))
    source = PerturbationAnnDataSource(config)
    return source, in_store_order(source, anndata.read_h5ad(path))


class TestPublishedScreens:
    @pytest.mark.slow
    def test_schraivogel_equals_the_three_stages(self, schraivogel):
        source, adata = schraivogel
        frame, genes = frame_of(adata), list(adata.var_names)
        counted = adata.obs.groupby(["cell_type", "perturbation"], observed=True).size()
        table = source.groups.table().set_index(["cell_type", "perturbation"])["n_cells"]
        assert table.to_dict() == counted.to_dict()
        dense = adata.X.toarray()
        result = check(source, dense, frame, genes)
        assert (result.table["reason"].str.len() > 0).all()
        assert set(result.table["perturbation"]) == set(adata.obs["perturbation"]) - {CONTROL}
        unassigned = result.table.set_index("perturbation").loc["unassigned"]
        assert unassigned["reason"] == "target gene not measured"
        assert unassigned["n_cells"] == (adata.obs["perturbation"] == "unassigned").sum()
        controls = (adata.obs["perturbation"] == CONTROL).to_numpy()
        assert (source.get_control_mask() == controls).all()
        check(source, dense, frame, genes, exact=False, control_match="batch")

    def test_controls_matched_by_batch_are_from_the_same_batch(self, schraivogel):
        source, adata = schraivogel
        obs = adata.obs
        mapping = BatchControlMapping()
        rows, controls = mapping.mapped_rows(source), mapping.build_mapping(source)[:, 0]
        batch, cell_type, perturbation = (obs[c].to_numpy(dtype=object) for c in ("batch", "cell_type", "perturbation"))
        assert len(rows) == (perturbation != CONTROL).sum()
        assert (batch[rows] == batch[controls]).all()
        assert (cell_type[rows] == cell_type[controls]).all()
        assert set(perturbation[controls]) == {CONTROL}

    def test_double_perturbations_are_reported_as_not_measured(self, tmp_path):
        path = real_screen("perturbench_devel_asis.h5ad")
        source = PerturbationAnnDataSource(
            PerturbationSourceConfig(
                file_path=path, cache_dir=tmp_path, pert_col="condition", batch_col=None, control_pert="control"
            )
        )
        adata = in_store_order(source, anndata.read_h5ad(path))
        result = OnTargetKnockdownFilter(KnockdownFilterConfig()).run(source)
        table = result.table.set_index("perturbation")
        counted = adata.obs["condition"].value_counts()
        assert table["n_cells"].to_dict() == {k: v for k, v in counted.items() if k != "control" and v > 0}
        doubles = table[table.index.str.contains("+", regex=False)]
        assert len(doubles) > 0
        assert (doubles["reason"] == "target gene not measured").all()
        dense = adata.X.toarray() if sparse.issparse(adata.X) else adata.X
        frame = adata.obs[["condition", "cell_type"]].astype(object).rename(columns={"condition": "perturbation"})
        frame = frame.assign(batch="all", dataset="all").reset_index(drop=True)
        check(source, dense, frame, list(adata.var_names), exact=False, control="control")


class TestIsOnTarget:
    @pytest.mark.parametrize(
        ("expression", "perturbed", "residual", "expected"),
        [
            ([1, 1, 4, 4], [1, 1, 0, 0], 0.25, False),
            ([1, 1, 4, 4], [1, 1, 0, 0], 0.26, True),
            ([0, 0, 0, 0], [1, 1, 0, 0], 0.5, False),
            ([1, 1, 4, 4], [0, 0, 0, 0], 0.5, False),
            ([1, 1, 4, 4], [1, 1, 1, 1], 0.5, False),
        ],
        ids=["equal", "below", "control mean zero", "nothing perturbed", "no controls"],
    )
    def test_it_compares_means(self, expression, perturbed, residual, expected):
        perturbed = np.array(perturbed, bool)
        assert is_on_target_knockdown(np.array(expression), perturbed, ~perturbed, residual) is expected


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("residual_expression", 0),
            ("residual_expression", 1.1),
            ("cell_residual_expression", -1),
            ("cell_residual_expression", float("nan")),
            ("min_cells", 0),
            ("control_match", "donor"),
        ],
    )
    def test_options_are_checked_on_construction(self, name, value):
        with pytest.raises(ConfigError, match=f"{name}: got {value!r}"):
            KnockdownFilterConfig(**{name: value})

    def test_an_unknown_var_column_or_layer_raises(self, reference):
        with pytest.raises(ColumnNotFoundError, match=r"var_gene_col: got 'gene_names'.*Did you mean 'gene_name'"):
            OnTargetKnockdownFilter(KnockdownFilterConfig(var_gene_col="gene_names")).run(reference.source)
        with pytest.raises(ColumnNotFoundError, match="layer: got 'counts'"):
            OnTargetKnockdownFilter(KnockdownFilterConfig(layer="counts")).run(reference.source)


def test_the_repr_shows_the_options():
    assert repr(OnTargetKnockdownFilter(KnockdownFilterConfig(min_cells=7))).startswith("OnTargetKnockdownFilter(")
    assert "min_cells=7" in repr(OnTargetKnockdownFilter(KnockdownFilterConfig(min_cells=7)))
