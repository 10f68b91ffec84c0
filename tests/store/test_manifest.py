"""Digests change with everything that they cover, and with nothing else."""

import copy

import pytest

from lazypert.store.manifest import Entry, manifest_digest, root_digest

ENTRIES = [Entry("X/data/c/0", 10, 1), Entry("X/data/c/1", 10, 2), Entry("obs/zarr.json", 5, 3)]
ROOT = {
    "zarr_format": 3,
    "attributes": {"encoding-type": "anndata", "lazypert": {"n_obs": 3, "root_digest": "abc", "list": [1, 2]}},
}


def test_the_order_of_entries_does_not_matter():
    assert manifest_digest(ENTRIES) == manifest_digest(reversed(ENTRIES))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(ENTRIES[1:], id="one_entry_less"),
        pytest.param([*ENTRIES, Entry("z", 0, 0)], id="one_entry_more"),
        pytest.param([Entry("X/data/c/0", 10, 2), Entry("X/data/c/1", 10, 1), ENTRIES[2]], id="swapped_checksums"),
        pytest.param([Entry("X/data/c/0", 11, 1), *ENTRIES[1:]], id="size"),
        pytest.param([Entry("X/data/c/O", 10, 1), *ENTRIES[1:]], id="key"),
        pytest.param([Entry("X/data/c/0", 1, 1), Entry("X/data/c/1", 10, 2), ENTRIES[2]], id="digit"),
    ],
)
def test_any_change_of_an_entry_changes_the_digest(changed):
    assert manifest_digest(changed) != manifest_digest(ENTRIES)


def test_the_root_digest_ignores_itself():
    other = copy.deepcopy(ROOT)
    other["attributes"]["lazypert"]["root_digest"] = "other"
    assert root_digest(other) == root_digest(ROOT)
    assert ROOT["attributes"]["lazypert"]["root_digest"] == "abc"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("zarr_format",), 2),
        (("attributes", "encoding-type"), "x"),
        (("attributes", "lazypert", "n_obs"), 4),
        (("attributes", "lazypert", "list"), [2, 1]),
    ],
    ids=lambda v: "/".join(v) if isinstance(v, tuple) else "",
)
def test_the_root_digest_covers_everything_else(path, value):
    other = copy.deepcopy(ROOT)
    node = other
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert root_digest(other) != root_digest(ROOT)
