"""Loader options are validated when the config is made, and the typed keyword arguments match it."""

import dataclasses
import typing
from collections.abc import Sequence

import jax
import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.downsampling.config import DownsamplingConfig
from lazypert.errors import ConfigError, LazypertError
from lazypert.loading.config import LoaderConfig, LoaderOptions
from tests.support.loaders import loader_of

BAD_OPTIONS = {
    "n_basal_samples": (-1, 2.0),
    "threads": (0, "2"),
    "prefetch": (0, 1.5),
    "n_hosts": (0,),
    "host": (-1,),
    "layout": ("coo", None),
    "to": ("torch",),
    "target_sum": (0.0, "1e4", float("inf")),
    "downsampling": (0.5,),
    "sharding": ("gpu",),
    "fixed_pairs": ("no",),
    "genes": ({"ENSG00000000000"}, ["ENSG00000000000", 3]),
    "extras": (("colour",), "colour"),
    "obs": ({"cell_type"},),
    "text_width": (0,),
    "memory_limit": ("much", -5),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD_OPTIONS for value in BAD_OPTIONS[name]])
def test_invalid_values_are_rejected(name, value):
    message = f"{name}: got"
    with pytest.raises(ConfigError, match=message):
        LoaderConfig(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed_pairs": True, "n_basal_samples": 0}, "fixed_pairs: got True with n_basal_samples=0"),
        ({"downsampling": DownsamplingConfig(is_log1p_input=True)}, "downsampling: got"),
        ({"downsampling": DownsamplingConfig(fraction=0.5, estimator="rounding")}, "downsampling: got"),
        (
            {"sharding": jax.sharding.SingleDeviceSharding(jax.devices()[0]), "to": "numpy"},
            "sharding: got a sharding with to='numpy'",
        ),
    ],
)
def test_contradictory_options_are_rejected(options, message):
    with pytest.raises(ConfigError, match=message):
        LoaderConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": ["nonesuch"]}, "genes: got 'nonesuch', expected a gene of the screen"),
        ({"genes": ["ENSG00000000000"] * 2}, "genes: got 'ENSG00000000000'"),
        ({"obs": ("nonesuch",)}, "obs: got 'nonesuch', expected an obs column"),
        ({"host": 1}, "host: got 1, expected 0 to 0, as n_hosts is 1"),
        ({"host": 2, "n_hosts": 2}, "host: got 2, expected 0 to 1"),
    ],
)
def test_options_that_do_not_fit_the_screen_or_hosts_are_rejected(source, options, message):
    with pytest.raises(LazypertError, match=message):
        loader_of(source, **options)


def test_the_config_is_frozen_keyword_only_and_hashable():
    config = LoaderConfig(genes=pd.Index(["A", "B"]), obs=["depth", "donor", "depth"], threads=np.int64(3))
    assert config == LoaderConfig(genes=("A", "B"), obs=("depth", "donor"), threads=3)
    assert len({config, dataclasses.replace(config)}) == 1
    assert type(config.threads) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layout = "csr"
    with pytest.raises(TypeError):
        LoaderConfig(1)


def test_typed_options_equal_the_fields_of_the_config():
    names = {"jax": jax, "Sharding": jax.sharding.Sharding, "Sequence": Sequence}
    fields, options = (typing.get_type_hints(cls, localns=names) for cls in (LoaderConfig, LoaderOptions))
    fields = {field.name: fields[field.name] for field in dataclasses.fields(LoaderConfig)}
    assert options == fields
    assert list(options) == [field.name for field in dataclasses.fields(LoaderConfig)]


def test_repr_shows_only_what_differs_from_the_defaults():
    assert repr(LoaderConfig()) == "LoaderConfig()"
    assert repr(LoaderConfig(layout="csr", target_sum=1)) == "LoaderConfig(layout='csr', target_sum=1.0)"
    genes = [f"g{i}" for i in range(5_000)]
    assert repr(LoaderConfig(genes=genes)) == "LoaderConfig(genes=('g0', 'g1', 'g2', ... 5,000 in all))"
    config = LoaderConfig(genes=["A"], downsampling=DownsamplingConfig(fraction=0.5))
    assert eval(repr(config)) == config


def test_threads_default_to_the_processors_and_one_more(monkeypatch):
    monkeypatch.setattr("lazypert._internal.memory.cpu_count", lambda: 3)
    assert LoaderConfig().n_threads == 4
    monkeypatch.setattr("lazypert._internal.memory.cpu_count", lambda: 64)
    assert LoaderConfig().n_threads == 8
    monkeypatch.setattr("lazypert._internal.memory.cpu_count", lambda: 1)
    assert LoaderConfig().n_threads == 1
    assert LoaderConfig(threads=20).n_threads == 20


def test_the_package_exports_the_config():
    assert lp.LoaderConfig is LoaderConfig
