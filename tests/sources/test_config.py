"""Options of a source are checked on construction."""

import pytest

from lazypert import PerturbationSourceConfig
from lazypert.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_space": "genes"}, "output_space: got 'genes'"),
        ({"output_space": "gene"}, "hvg_col: got None"),
        ({"output_space": "embedding"}, "embedding_key: got None"),
        ({"additional_obs": ("a", "a")}, "each column once"),
        ({"memory_limit": "lots"}, "got 'lots'"),
        ({"memory_limit": "1MiB"}, "memory_limit: got '1MiB'"),
    ],
    ids=str,
)
def test_options_are_checked_on_construction(options, message):
    with pytest.raises(ConfigError, match=message):
        PerturbationSourceConfig(file_path="s.h5ad", **options)
