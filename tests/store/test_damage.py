"""The error for damage says which file, what is wrong, what follows and what to do."""

from lazypert.errors import StoreDamagedError
from lazypert.store.damage import store_damaged


def test_the_error_names_file_problem_and_remedy():
    error = store_damaged("X/data/c/0", "the file is missing")
    assert isinstance(error, StoreDamagedError)
    assert str(error).startswith("X/data/c/0: the file is missing. The store is damaged. ")
    assert "lazypert.verify" in str(error)
    assert "convert the source again" in str(error)
