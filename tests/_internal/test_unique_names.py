import pytest

from lazypert._internal.unique_names import unique_names


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        ([], ()),
        (["a", "b"], ("a", "b")),
        (["x", "x", "x"], ("x", "x_2", "x_3")),
    ],
    ids=str,
)
def test_repeated_names_are_numbered(names, unique):
    assert unique_names(names) == unique


@pytest.mark.parametrize("names", [["x_3", "x", "x"], ["x", "x_2", "x"], ["x_2", "x", "x", "x_2"]], ids=str)
def test_numbered_names_stay_unique_next_to_names_that_look_alike(names):
    assert len(set(unique_names(names))) == len(names)
