"""Split names have one spelling inside lazypert."""

import pytest

from lazypert.errors import ConfigError
from lazypert.splits.names import SPLITS, split_name


def test_val_means_valid():
    assert split_name("val") == "valid"
    assert [split_name(name) for name in SPLITS] == ["train", "valid", "test"]


@pytest.mark.parametrize("name", ["validation", "Train", "", None, ["test"]], ids=repr)
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match=r"split: got .*, expected one of 'train', 'valid', 'test'"):
        split_name(name)
