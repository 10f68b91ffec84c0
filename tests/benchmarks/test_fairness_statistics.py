"""The statistics of null screens find fair samples fair, and each kind of unfairness where it is."""

import numpy as np
import pytest

from benchmarks.fairness_statistics import Cells, NullTally

LENGTH, N_BATCHES, N_PERTS, N_GENES, N_CONTROLS = 20, 5, 12, 30, 3000


def epoch(seed=0, *, k=1, sort=False, controls_of=None, by_batch=False):
    """Statistics of an epoch over simulated cells: 400 of each perturbation, and controls drawn at random.

    `controls_of(rng, pool_batch, own_batch)` draws the controls of cells otherwise.
    """
    rng = np.random.default_rng(seed)
    effect = rng.normal(0, 0.6, (N_BATCHES, N_GENES))
    pool_batch = rng.integers(0, N_BATCHES, N_CONTROLS)
    pool = rng.poisson(np.exp(1 + effect[pool_batch]))
    tally = NullTally(
        n_perturbations=N_PERTS, n_batches=N_BATCHES, n_genes=N_GENES, sentence_size=LENGTH, by_batch=by_batch
    )
    for code in range(N_PERTS):
        batch = rng.integers(0, N_BATCHES, 400)
        batch = np.sort(batch) if sort else batch
        drawn = rng.integers(0, N_CONTROLS, (400, k)) if controls_of is None else controls_of(rng, pool_batch, batch)
        for start in range(0, 400, 2 * LENGTH):
            part = slice(start, start + 2 * LENGTH)
            tally.add(
                Cells(
                    counts=rng.poisson(np.exp(1 + effect[batch[part]])).astype(np.float32),
                    controls=pool[drawn[part]].astype(np.float32),
                    control_id=drawn[part],
                    perturbation=np.full(2 * LENGTH, code),
                    batch=batch[part],
                    dataset=np.zeros(2 * LENGTH, int),
                    is_padding=np.zeros(2 * LENGTH, bool),
                )
            )
    return tally.statistics(control=0, n_controls=N_CONTROLS)


def test_fair_samples():
    found = epoch(k=8)
    assert found.z.shape == (N_PERTS - 1, N_GENES)
    assert found.rms_z == pytest.approx(1, abs=0.12)
    assert found.beyond_3 < 0.02
    assert abs(found.correlation) < 0.2
    assert found.served == pytest.approx(1, abs=0.02)
    assert found.worth == pytest.approx(8, rel=0.05)
    assert found.share_variance == pytest.approx(1, abs=0.12)


def test_controls_of_few_batches_look_like_effects_that_perturbations_share():
    found = epoch(controls_of=lambda rng, pool, own: rng.choice(np.flatnonzero(pool == 2), (len(own), 1)))
    assert found.rms_z > 3
    assert found.beyond_3 > 0.3
    assert found.correlation > 0.8
    assert found.served < 0.4


def test_sentences_of_sorted_cells_are_not_random_samples():
    found = epoch(sort=True)
    assert found.share_variance > 5
    assert found.rms_z == pytest.approx(1, abs=0.12)  # the means of whole perturbations do not show it


def test_repeated_controls_are_worth_one():
    found = epoch(controls_of=lambda rng, pool, own: np.repeat(rng.integers(0, len(pool), (len(own), 1)), 8, axis=1))
    assert found.worth == pytest.approx(1, rel=0.05)
    assert found.rms_z > 1.2  # 1 / 8 of the variance of controls is expected


def test_a_pool_is_worth_no_more_than_its_controls():
    few = NullTally(n_perturbations=3, n_batches=1, n_genes=3, sentence_size=2, by_batch=False, n_datasets=2)
    rng = np.random.default_rng(0)
    pool = rng.poisson(5, (6, 3)).astype(np.float32)
    drawn = np.stack([np.arange(3) + 3 * (row % 2) for row in range(10)])  # all three controls of one dataset
    few.add(
        Cells(
            counts=rng.poisson(5, (10, 3)).astype(np.float32),
            controls=pool[drawn[:, [0, 1, 2, 0]]],
            control_id=drawn[:, [0, 1, 2, 0]],
            perturbation=np.arange(10) // 4,
            batch=np.zeros(10, int),
            dataset=np.arange(10) % 2,
            is_padding=np.zeros(10, bool),
        )
    )
    found = few.statistics(control=0, n_controls=6)
    assert found.most_worth == found.worth == 3


def test_controls_of_the_same_batch_are_judged_within_batches():
    def draw(rng, pool, own):
        return np.stack([rng.choice(np.flatnonzero(pool == batch), 8) for batch in own])

    matched = epoch(controls_of=draw, by_batch=True)
    assert matched.worth == pytest.approx(8, rel=0.05)
    assert np.isnan(matched.share_variance)
    assert matched.summary()["share_variance"] is None
    assert matched.rms_z < 0.9
    assert epoch(controls_of=draw).worth < 6  # not within batches: controls of one cell have their batch in common


def test_z_is_what_a_loop_over_perturbations_finds_and_padding_is_left_out():
    rng = np.random.default_rng(3)
    n, k = 60, 3
    cells = Cells(
        counts=rng.poisson(4, (n, 5)).astype(np.float32),
        controls=rng.poisson(4, (n, k, 5)).astype(np.float32),
        control_id=rng.integers(0, 50, (n, k)),
        perturbation=rng.integers(0, 4, n),
        batch=rng.integers(0, 3, n),
        dataset=np.zeros(n, int),
        is_padding=rng.random(n) < 0.2,
    )
    tally = NullTally(n_perturbations=4, n_batches=3, n_genes=5, sentence_size=6, by_batch=False)
    for start in (0, 30):
        tally.add(Cells(*(values[start : start + 30] for values in cells)))
    found = tally.statistics(control=3, n_controls=50)

    kept = ~cells.is_padding
    for code in range(3):
        own = kept & (cells.perturbation == code)
        difference = cells.counts[own].mean(axis=0) - cells.controls[own].reshape(-1, 5).mean(axis=0)
        error = np.sqrt(cells.counts[kept].var(axis=0) * (1 / own.sum() + 1 / own.sum() / k + 1 / 50))
        np.testing.assert_allclose(found.z[code], difference / error, rtol=1e-5)
    assert found.n_served == len(set(cells.control_id[kept].ravel().tolist()))
    assert found.n_expected == pytest.approx(50 * (1 - (49 / 50) ** (kept.sum() * k)))
