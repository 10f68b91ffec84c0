"""Readers raise the same error for every name that does not exist."""

from pathlib import Path

import pytest

from lazypert.errors import ColumnNotFoundError
from lazypert_converters._reader import Reader


@pytest.fixture
def reader():
    return Reader(
        path=Path("a.h5"),
        n_obs=4,
        n_vars=3,
        obs_columns=("guide", "batch"),
        matrices={"X": 3},
        obsm={},
        not_carried=("obs/ragged: encoded as 'ragged' 1.0",),
    )


def test_a_missing_obs_column_suggests_similar_names(reader):
    said = str(reader.no_obs_column("Guides"))
    assert said == "obs column: got 'Guides', expected an obs column of 'a.h5'. Did you mean 'guide'?"


def test_an_obs_column_that_is_not_carried_names_the_reason(reader):
    assert str(reader.no_obs_column("ragged")).endswith(" obs/ragged: encoded as 'ragged' 1.0.")


def test_formats_without_raw_and_embeddings_say_so(reader):
    with pytest.raises(ColumnNotFoundError, match=r"matrix: got 'raw/X', expected a matrix of 'a\.h5'"):
        reader.raw_var()
    with pytest.raises(ColumnNotFoundError, match=r"embedding: got 'X_pca', .* 'a\.h5'\. There are none\."):
        reader.read_obsm("X_pca", 0, 1)
