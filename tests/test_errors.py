"""Each exception is a LazypertError and the built-in exception that fits, and prints as plain text."""

import copy
import pickle
import re

import pytest

from lazypert import errors
from lazypert.errors import ColumnNotFoundError, LazypertError, near_matches, no_such_column

KINDS = {
    errors.ConfigError: ValueError,
    errors.ColumnNotFoundError: KeyError,
    errors.LabelNotFoundError: KeyError,
    errors.SourceFormatError: ValueError,
    errors.StoreNotFoundError: FileNotFoundError,
    errors.StoreExistsError: FileExistsError,
    errors.DiskFullError: OSError,
    errors.MachineError: OSError,
    errors.StoreDamagedError: OSError,
    errors.StoreChangedError: OSError,
    errors.ClusterError: RuntimeError,
    errors.RunChangedError: ValueError,
    errors.EmptyPoolError: ValueError,
    errors.NotCountsError: ValueError,
    errors.SourceMissingError: FileNotFoundError,
    errors.ExperimentFileNotFoundError: FileNotFoundError,
}


def test_every_exception_is_tested_here():
    defined = {k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, LazypertError)}
    assert defined - {LazypertError} == set(KINDS)


def test_the_module_docstring_shows_the_tree():
    shown = {}
    for line in errors.__doc__.splitlines():
        if match := re.match(r"    ([│├└─ ]*)(\w+Error)(?: \((\w+)\))?", line):
            depth = len(match[1]) // 4
            shown[match[2]] = (match[3], depth)
    assert set(shown) == {kind.__name__ for kind in KINDS} | {"LazypertError"}
    for kind in KINDS:
        builtin, depth = shown[kind.__name__]
        assert builtin in {base.__name__ for base in kind.__bases__}
        assert depth == sum(issubclass(base, LazypertError) for base in kind.__mro__) - 1


@pytest.mark.parametrize(("kind", "builtin"), KINDS.items(), ids=lambda k: k.__name__)
def test_is_also_the_builtin_exception(kind, builtin):
    assert issubclass(kind, LazypertError)
    assert issubclass(kind, builtin)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_prints_its_message_unchanged(kind):
    message = "obs has no 'cell type'.\nDid you mean 'cell_type'?"
    assert str(kind(message)) == message


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_can_be_pickled_copied_and_rebuilt_in_another_process(kind):
    error = kind("what happened")
    error.add_note("a note")
    rebuilt = kind.__new__(kind, *error.args)  # as tblib does, which pytest-xdist and distributed use
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), rebuilt):
        assert (type(again), str(again)) == (kind, "what happened")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["a note"]


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
        ("zzz", ["n" * 695, "b"], f"There are 2: '{'n' * 100}'... (695 characters), 'b'."),
    ],
    ids=["near", "case", "few", "many", "none", "long"],
)
def test_near_matches_suggests_or_lists_names(name, known, phrase):
    assert near_matches(name, known) == phrase


def test_near_matches_lists_at_most_the_limit():
    assert near_matches("zzz", ["a", "b", "c"], limit=2) == "There are 3: 'a', 'b', ...."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pert_col: got 'pert', expected an obs column. There are 2: 'guide', 'batch'."),
        ({"of": "a.h5ad"}, "pert_col: got 'pert', expected an obs column of 'a.h5ad'. There are 2: 'guide', 'batch'."),
        ({"hint": "Try."}, "pert_col: got 'pert', expected an obs column. There are 2: 'guide', 'batch'. Try."),
    ],
    ids=["plain", "file", "hint"],
)
def test_no_such_column_lists_the_columns(options, message):
    error = no_such_column("pert_col", "pert", "an obs column", ["guide", "batch"], **options)
    assert isinstance(error, ColumnNotFoundError)
    assert str(error) == message
