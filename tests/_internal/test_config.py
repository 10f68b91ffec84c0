"""Configs are printed short and derived from one another."""

import pickle
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest

from lazypert import PerturbationPipelineConfig, PerturbationSourceConfig
from lazypert._internal.config import Config, derive
from lazypert.errors import ConfigError


@dataclass(frozen=True, kw_only=True, repr=False)
class Shared(Config):
    size: int = 4
    seed: int = 42


@dataclass(frozen=True, kw_only=True, repr=False)
class Small(Shared):
    path: str
    is_fast: bool = False


@dataclass(frozen=True, kw_only=True, repr=False)
class Large(Shared):
    mode: str = "all"
    is_fast: bool = True


def test_repr_shows_only_what_differs_from_the_defaults():
    assert repr(Large()) == "Large()"
    assert repr(Small(path="a", seed=42, size=5)) == "Small(size=5, path='a')"


def test_derived_configs_take_the_fields_that_both_have():
    assert derive(Small, Large(size=9, mode="some"), path="x") == Small(size=9, is_fast=True, path="x")


def test_given_values_replace_shared_fields():
    assert derive(Small, Large(size=9), path="x", size=1).size == 1


def test_missing_fields_are_reported():
    with pytest.raises(TypeError, match="path"):
        derive(Small, Large())


def test_unknown_options_are_refused_with_near_matches():
    with pytest.raises(ConfigError, match=r"^sied: unknown option\. Did you mean .*'seed'"):
        Large(sied=1)
    with pytest.raises(ConfigError, match=r"^mod: unknown option\. Did you mean 'mode'"):
        derive(Large, Small(path="x"), mod="some")
    assert replace(Large(), seed=5) == pickle.loads(pickle.dumps(Large(seed=5)))


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Large().seed = 1


def test_secrets_are_never_shown():
    for kind in (PerturbationSourceConfig, PerturbationPipelineConfig):
        path = {"file_path": "s3://bucket/s.zarr"} if kind is PerturbationSourceConfig else {}
        config = kind(storage_options={"secret": "S3CR3T"}, **path)
        assert "storage_options={...}" in repr(config)
        assert "S3CR3T" not in f"{config!r} {config}"
        with pytest.raises(ConfigError, match=r"storage_options: got 'list', expected a dictionary") as raised:
            kind(storage_options=["S3CR3T"], **path)
        assert "S3CR3T" not in str(raised.value)
