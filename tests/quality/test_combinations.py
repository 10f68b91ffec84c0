"""Combinations pass if the targets of all of their parts do, in the same cells."""

import numpy as np
import pytest

import lazypert as lp
from tests.support.screens import CONTROL, make_screen, source_of

GENES = ["A", "B", "C", "D"]


def reference(counts, labels, config):
    """The three stages, in loops: which cells pass, and which perturbations."""
    limits = {"down": lambda r, limit: r < limit, "up": lambda r, limit: r > 1 / limit}
    changed, mask, passed = limits[config.direction], labels == CONTROL, {}
    controls = counts[labels == CONTROL].mean(axis=0)
    for label in sorted(set(labels) - {CONTROL}):
        cells = np.flatnonzero(labels == label)
        kept, is_good = set(cells.tolist()), True
        for part in label.split("+"):
            if part not in GENES or controls[GENES.index(part)] == 0:
                is_good = False
                break
            gene = GENES.index(part)
            is_good &= bool(changed(counts[cells, gene].mean() / controls[gene], config.residual_expression))
            kept &= {
                cell for cell in cells if changed(counts[cell, gene] / controls[gene], config.cell_residual_expression)
            }
        passed[label] = is_good and len(kept) >= config.min_cells
        if passed[label]:
            mask[list(kept)] = True
    return mask, passed


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_rule_in_loops(tmp_path, seed, direction):
    rng = np.random.default_rng(seed)
    labels = np.repeat(["A", "B", "A+B", "A+C", "B+C+D", "A+x", "C+D", CONTROL], 30)
    counts = rng.poisson(10.0, (len(labels), len(GENES))).astype(float)
    for i, label in enumerate(labels):
        for part in set(label.split("+")) & set(GENES):
            j = GENES.index(part)
            counts[i, j] = rng.poisson(10.0 * (rng.choice([0.1, 0.3]) if direction == "down" else rng.choice([3, 5])))
    raw = ["+".join(rng.permutation(label.split("+"))) for label in labels]
    raw = [f"{label}+{CONTROL}" if label == "A" and i % 2 else label for i, label in enumerate(raw)]
    obs = {"perturbation": raw, "cell_type": ["T"] * len(raw), "batch": ["b"] * len(raw)}
    source = source_of(make_screen(obs, counts, genes=GENES), tmp_path, separator="+")
    config = lp.KnockdownFilterConfig(
        min_cells=5, direction=direction, residual_expression=0.4, cell_residual_expression=0.5
    )
    result = lp.OnTargetKnockdownFilter(config).run(source)
    names = source.obs_names(np.arange(len(raw)))
    rows = np.array([int(name.removeprefix("cell")) for name in names])
    mask, passed = reference(counts, labels, config)
    np.testing.assert_array_equal(result.mask, mask[rows])
    assert result.table.set_index("perturbation")["passed"].to_dict() == passed
    assert result.table["n_kept"].sum() + 30 == mask.sum()


def run(tmp_path, labels, counts, **options):
    obs = {"perturbation": labels, "cell_type": ["T"] * len(labels), "batch": ["b"] * len(labels)}
    source = source_of(make_screen(obs, counts, genes=GENES), tmp_path, separator="+")
    config = lp.KnockdownFilterConfig(min_cells=1, **options)
    return lp.OnTargetKnockdownFilter(config).run(source).table.set_index("perturbation")


def test_the_part_that_fails_is_named(tmp_path):
    counts = np.array([[0, 10, 10, 10], [10, 0, 9, 10], [10, 10, 10, 10]], dtype=float)
    table = run(tmp_path, ["A+B", "B+C", CONTROL], counts)
    assert table.loc["A+B", "reason"] == "B: residual expression too high (1.000, must be below 0.3)"
    assert table.loc["B+C", "reason"] == "C: residual expression too high (0.900, must be below 0.3)"
    assert table.loc["B+C", "residual_expression"] == pytest.approx(0.9)


def test_parts_may_be_guides_and_a_combination_may_have_one_target(tmp_path):
    counts = np.array([[0, 1, 10, 10], [10, 10, 1, 10], [10, 10, 10, 10]], dtype=float)
    targets = {"g1": "A", "g2": "B", "g4+g3": "C"}
    table = run(tmp_path, ["g2+g1", "g4+g3", CONTROL], counts, targets=targets)
    assert table["passed"].to_dict() == {"g1+g2": True, "g3+g4": True}
    assert table["residual_expression"].to_dict() == {"g1+g2": pytest.approx(0.1), "g3+g4": pytest.approx(0.1)}


def test_without_a_separator_combinations_have_no_target(tmp_path):
    obs = {"perturbation": ["A", "A+B", CONTROL], "cell_type": ["T"] * 3, "batch": ["b"] * 3}
    source = source_of(make_screen(obs, np.ones((3, 4)), genes=GENES), tmp_path)
    table = lp.OnTargetKnockdownFilter().run(source).table.set_index("perturbation")
    assert table.loc["A+B", "reason"] == "target gene not measured"
