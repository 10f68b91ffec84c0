"""Every error is a LazypertError and the builtin that fits, and reads as plain text."""

import pickle

import pytest

from lazypert import errors
from lazypert.errors import LazypertError, near_matches

KINDS = {
    errors.ConfigError: ValueError,
    errors.ColumnNotFoundError: KeyError,
    errors.LabelNotFoundError: KeyError,
    errors.SourceFormatError: ValueError,
    errors.StoreNotFoundError: FileNotFoundError,
    errors.StoreExistsError: FileExistsError,
    errors.DiskFullError: OSError,
    errors.StoreDamagedError: OSError,
    errors.EmptyPoolError: ValueError,
    errors.NotCountsError: ValueError,
    errors.SourceMissingError: FileNotFoundError,
    errors.ExperimentFileNotFoundError: FileNotFoundError,
}


def test_every_kind_is_listed_here():
    found = {k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, LazypertError)}
    assert found - {LazypertError} == set(KINDS)


@pytest.mark.parametrize(("kind", "builtin"), KINDS.items(), ids=lambda k: k.__name__)
def test_is_also_the_builtin(kind, builtin):
    assert issubclass(kind, LazypertError)
    assert issubclass(kind, builtin)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_prints_as_it_was_written(kind):
    message = "obs has no 'cell type'.\nDid you mean 'cell_type'?"
    assert str(kind(message)) == message


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_crosses_process_borders(kind):
    again = pickle.loads(pickle.dumps(kind("what happened")))
    assert (type(again), str(again)) == (kind, "what happened")


@pytest.mark.parametrize(
    ("name", "known", "phrase"),
    [
        ("non_targeting", ["BRCA1", "non-targeting"], "Did you mean 'non-targeting'?"),
        ("brca1", ["BRCA1", "BRCA2"], "Did you mean 'BRCA1' or 'BRCA2'?"),
        ("zzz", ["a", "b"], "There are 2: 'a', 'b'."),
        (
            "zzz",
            [f"gene{i}" for i in range(1200)],
            "There are 1,200: 'gene0', 'gene1', 'gene2', 'gene3', 'gene4', ....",
        ),
        ("zzz", [], "There are none."),
    ],
    ids=["near", "case", "few", "many", "none"],
)
def test_near_matches(name, known, phrase):
    assert near_matches(name, known) == phrase


def test_near_matches_shows_as_many_as_asked():
    assert near_matches("zzz", ["a", "b", "c"], limit=2) == "There are 3: 'a', 'b', ...."
