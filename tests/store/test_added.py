"""Digests of added elements, computed again from the store's files as docs/store-format.md describes them."""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.store.added import combined_digest, is_within
from lazypert.store.store import Store
from tests.support.stores import ROLES, read_store, screen, write


def digest_from_files(store, element):
    found = sorted(path for path in (Path(store) / element).rglob("*") if path.is_file())
    lines, nodes = [], {}
    for path in found:
        key, data = path.relative_to(store).as_posix(), path.read_bytes()
        if path.name == "zarr.json":
            node = json.loads(data)
            known = ("node_type", "attributes", "shape", "data_type")
            nodes[key.removesuffix("/zarr.json")] = {name: node[name] for name in known if name in node}
        else:
            lines.append(f"{key}\t{len(data)}\t{zlib.crc32(data)}\n")
    files = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    return hashlib.sha256(f"{files}\n{json.dumps(nodes, sort_keys=True)}".encode()).hexdigest()


def test_digests_are_those_of_the_store_format(tmp_path):
    write(screen(lean=True), tmp_path / "s.h5ad")
    store = lp.convert(tmp_path / "s.h5ad", tmp_path / "s.zarr", progress=False, **ROLES)
    names = read_store(store).obs_names
    table = {"x": np.arange(90), "x2": pd.Categorical(["a", "b"] * 45), "é x": pd.array([1, None] * 45, dtype="Int8")}
    lp.add_obs(store, pd.DataFrame(table, index=names))
    lp.add_obsm(store, "X_new", np.ones((90, 2), "f4"))
    added = Store(store).added
    assert set(added) == {"obs/x", "obs/x2", "obs/é x", "obsm/X_new"}
    assert added == {element: digest_from_files(store, element) for element in added}


@pytest.mark.parametrize(
    ("path", "expected"),
    [("obs/x", True), ("obs/x/codes/c/0", True), ("obs/x2", False), ("obs/x2/c/0", False), ("obs", False)],
)
def test_is_within(path, expected):
    assert is_within(path, ["obs/x", "obsm/y"]) == expected


def test_only_added_elements_that_are_used_change_a_digest():
    added = {"obs/a": "1", "obs/b": "2"}
    assert combined_digest("content", added, ["obs/c", "obs/batch"]) == "content"
    digests = {combined_digest("content", added, used) for used in (["obs/a"], ["obs/b"], ["obs/a", "obs/b"])}
    assert len(digests) == 3
    assert combined_digest("content", added, ["obs/b", "obs/a", "obs/a"]) in digests
