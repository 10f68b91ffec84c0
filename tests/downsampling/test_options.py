"""Options of downsampling, and batches."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lazypert.downsampling.config import DownsamplingConfig
from lazypert.downsampling.downsampler import ReadDownsampler
from lazypert.errors import ColumnNotFoundError, ConfigError
from tests.support.thinning import KEY, screen, thinner


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "depth"}, "mode: got 'depth', expected 'fraction' or 'target_depth'"),
        ({"mode": "fractions"}, "Did you mean 'fraction'"),
        ({"estimator": "poisson"}, "'binomial' or 'rounding'"),
        ({"fraction": 0.0}, "above 0 and at most 1"),
        ({"fraction": 5_000}, "target_depth"),
        ({"fraction": float("nan")}, "expected a number"),
        ({"fraction": "half"}, "expected a number"),
        ({"target_depth": 100}, "mode='target_depth'"),
        ({"mode": "target_depth"}, "target_depth=5_000"),
        ({"mode": "target_depth", "target_depth": 0}, "an integer, 1 or more"),
        ({"mode": "target_depth", "target_depth": 10.5}, "an integer, 1 or more"),
        (
            {"mode": "target_depth", "target_depth": 10, "fraction": 0.5},
            "fraction: got 0.5 with mode=.target_depth.*Leave out fraction",
        ),
        ({"is_log1p_input": None}, "True or False"),
        ({"apply_log1p": 1}, "True or False"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DownsamplingConfig(**options)


def test_the_config_is_frozen_and_keyword_only():
    config = DownsamplingConfig(mode="target_depth", target_depth=np.int64(7))
    assert type(config.target_depth) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.fraction = 0.5
    with pytest.raises(TypeError):
        DownsamplingConfig("fraction")
    with pytest.raises(ConfigError, match="DownsamplingConfig"):
        ReadDownsampler(0.5)


def test_a_fraction_beside_a_target_depth_is_refused():
    with pytest.raises(ConfigError, match=r"the target depth determines each cell.s fraction"):
        thinner(mode="target_depth", target_depth=5)(np.ones((1, 2), np.float32), key=KEY, fraction=0.5)


def test_apply_replaces_counts_and_nothing_else():
    batch = {"counts": jnp.asarray(screen()), "pert": "TP53"}
    out = thinner(fraction=0.5).apply(batch, key=KEY)
    assert out["pert"] == "TP53"
    np.testing.assert_array_equal(out["counts"], thinner(fraction=0.5)(batch["counts"], key=KEY))
    assert out is not batch
    assert (np.asarray(batch["counts"]) == screen()).all()
    with pytest.raises(ColumnNotFoundError, match="Did you mean 'count'"):
        thinner().apply({"count": 1}, key=KEY)
