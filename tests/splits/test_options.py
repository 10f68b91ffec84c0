"""One set of options makes every splitter; those that a mode does not have are refused by name."""

from dataclasses import fields

import pytest

from lazypert.errors import ConfigError
from lazypert.splits.config import default_of
from lazypert.splits.options import SPLIT_MODES, SplitKwargs, SplitOptions
from lazypert.splits.splitters import SPLITTERS, make_splitter
from tests.support.screens import design_cells

GIVEN = {
    "held_out_cell_types": ("Neuron",),
    "held_out_perturbations": ("MYC",),
    "by": "batch",
    "test": 0.5,
    "valid": 0.4,
    "separator": "+",
    "n_seen": (0,),
    "test_combination_frac": 0.5,
    "valid_combination_frac": 0.2,
    "n_folds": 3,
    "fold": 0,
    "valid_fold": False,
    "train_frac": 0.5,
    "valid_frac": 0.2,
    "stratify_by": ("batch",),
}
NEEDED = {
    "random": {},
    "zeroshot": {"held_out_cell_types": ("Neuron",)},
    "fewshot": {"held_out_perturbations": ("MYC",)},
    "heldout": {"by": "batch", "test": 0.5},
    "combinations": {"separator": "+", "test": 0.5},
}


@pytest.mark.parametrize("mode", SPLIT_MODES)
@pytest.mark.parametrize("name", GIVEN)
def test_options_of_other_modes_are_refused(mode, name):
    options = SplitOptions(**{"split_mode": mode, **NEEDED[mode], name: GIVEN[name]})
    if name in SPLITTERS[mode].config_type.__dataclass_fields__:
        try:
            assert getattr(make_splitter(options).config, name) == GIVEN[name]
        except ConfigError as error:  # some options need one another
            assert f"with mode {mode!r}" not in str(error)  # noqa: PT017
        return
    with pytest.raises(ConfigError, match=f"{name}: got .* with mode '{mode}', expected it only with mode '"):
        make_splitter(options)


@pytest.mark.parametrize("mode", SPLIT_MODES)
def test_every_option_of_a_splitter_is_an_option_here(mode):
    known = {field.name: field.default for field in fields(SplitOptions)}
    for field in fields(SPLITTERS[mode].config_type):
        if field.name == "val_subsample_fraction":
            continue
        assert field.name in known
        is_required = field.default is field.default_factory  # both are MISSING
        assert is_required or default_of(SplitOptions, field.name) == field.default
    make_splitter(SplitOptions(split_mode=mode, **NEEDED[mode]))


@pytest.mark.parametrize("mode", ["zeroshot", "fewshot", "heldout", "combinations"])
def test_a_mode_without_its_options_holds_nothing_out(mode):
    with pytest.raises(ConfigError, match="got None"):
        make_splitter(SplitOptions(split_mode=mode))


def test_empty_options_are_not_left_out():
    with pytest.raises(ConfigError, match=r"held_out_cell_types: got \(\) with mode 'random'"):
        make_splitter(SplitOptions(held_out_cell_types=()))
    with pytest.raises(ConfigError, match=r"held_out_cell_types: got \(\), expected a tuple of at least one label"):
        make_splitter(SplitOptions(split_mode="zeroshot", held_out_cell_types=()))


def test_keyword_arguments_are_the_options():
    expected = {field.name for field in fields(SplitOptions)} - {"split_mode"}
    assert set(SplitKwargs.__annotations__) == expected


def test_rounding_to_no_label_is_refused():
    with pytest.raises(ConfigError, match="nothing would be held out"):
        make_splitter(SplitOptions(split_mode="heldout", by="perturbation", test=0.1)).split(design_cells())
