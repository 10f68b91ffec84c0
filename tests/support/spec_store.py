"""A reader of stores, written from docs/store-format.md; numbers in brackets are sections of that page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numcodecs import blosc

from tests.support.spec_rules import ABSENT, AXES, NAMES, RUN_AXES, TABLES, crc32c


class SpecStore:
    """Reads a store."""

    def __init__(self, root):
        self.root = Path(root)
        self.metadata = self.node(".")
        self.ours = self.metadata["attributes"]["lazypert"]
        assert self.ours["format_version"] in (1, 2, 3)

    def node(self, path):
        return json.loads((self.root / path / "zarr.json").read_text())

    def exists(self, path):
        return (self.root / path / "zarr.json").exists()

    def attrs(self, path):
        return self.node(path)["attributes"]

    def array(self, path):
        """[2.1, 2.2] All elements of a numeric or a text array."""
        node = self.node(path)
        (length,), (shard,) = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
        (chunk,) = node["codecs"][0]["configuration"]["chunk_shape"]
        dtype, is_delta = self.stored_dtype(path), self.is_delta(path)
        parts = [np.empty(0, dtype)]
        for k in range(math.ceil(length / shard)):
            raw = (self.root / path / "c" / str(k)).read_bytes()
            n_chunks = shard // chunk
            index = raw[-(16 * n_chunks + 4) :]
            assert crc32c(index[:-4]) == index[-4:]
            end = 0
            for number, (offset, size) in enumerate(np.frombuffer(index[:-4], "<u8").reshape(-1, 2).tolist()):
                if k * shard + number * chunk >= length:
                    assert offset == size == ABSENT
                    continue
                packed = raw[offset : offset + size]
                assert offset == end
                assert crc32c(packed[:-4]) == packed[-4:]
                end = offset + size
                decoded = blosc.decompress(packed[:-4])
                parts.append(texts(decoded) if dtype.kind == "O" else np.frombuffer(decoded, dtype.newbyteorder("<")))
                assert len(parts[-1]) == chunk
                if is_delta:
                    parts[-1] = np.add.accumulate(parts[-1], dtype=dtype)
            assert end == len(raw) - len(index)
        padding = np.concatenate(parts)[length:]
        assert not padding.any()
        return np.concatenate(parts)[:length].astype(NAMES.get(node["data_type"], node["data_type"]))

    def stored_dtype(self, path):
        """[3.1] Dtype of the elements in the shards of an array."""
        node = self.node(path)
        first = node["codecs"][0]["configuration"]["codecs"][0]
        if first["name"] == "numcodecs.astype":
            assert first["configuration"]["decode_dtype"] == np.dtype(node["data_type"]).str
            return np.dtype(first["configuration"]["encode_dtype"])
        return np.dtype(NAMES.get(node["data_type"], node["data_type"]))

    def is_delta(self, path):
        """[3.3] Whether the shards of an array hold differences."""
        chain = self.node(path)["codecs"][0]["configuration"]["codecs"]
        found = [codec["configuration"] for codec in chain if codec["name"] == "numcodecs.delta"]
        stored = self.stored_dtype(path)
        assert all(configuration == {"dtype": stored.str, "astype": stored.str} for configuration in found)
        return bool(found)

    def dense(self, path):
        """[2.3] A dense array."""
        node = self.node(path)
        (n, width), (rows, _) = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
        parts = []
        for k in range(math.ceil(n / rows)):
            raw = (self.root / path / "c" / str(k) / "0").read_bytes()
            assert crc32c(raw[:-4]) == raw[-4:]
            parts.append(np.frombuffer(blosc.decompress(raw[:-4]), node["data_type"]).reshape(rows, -1))
        return np.concatenate(parts)[:n, :width]

    def matrix(self, path):
        """[3] A matrix, dense."""
        indptr, indices, data = (self.array(f"{path}/{name}") for name in ("indptr", "indices", "data"))
        out = np.zeros(self.attrs(path)["shape"], data.dtype)
        for row in range(len(out)):
            mine = slice(indptr[row], indptr[row + 1])
            assert (np.diff(indices[mine]) > 0).all()
            out[row, indices[mine]] = data[mine]
        return out

    def column(self, path):
        """[4] The values of a column; None where one is missing."""
        kind = self.attrs(path)["encoding-type"]
        if kind == "categorical":
            categories = [*self.array(f"{path}/categories").tolist(), None]
            return [categories[code] for code in self.array(f"{path}/codes")]
        if kind.startswith("nullable-"):
            values, mask = self.array(f"{path}/values").tolist(), self.array(f"{path}/mask")
            return [None if missing else value for value, missing in zip(values, mask, strict=True)]
        return self.array(path).tolist()

    def runs(self):
        """[5] Start, stop and labels of each run; None for a missing label."""
        labels = {axis: [*self.array(f"{TABLES}/labels/{axis}"), None] for axis in AXES}
        axes = RUN_AXES if self.ours["format_version"] > 2 else AXES
        codes = [self.array(f"{TABLES}/runs/{axis}") for axis in axes]
        bounds = [self.array(f"{TABLES}/runs/{name}").tolist() for name in ("start", "stop")]
        named = [tuple(labels[a][c] for a, c in zip(axes, run, strict=True)) for run in zip(*codes, strict=True)]
        return list(zip(*bounds, named, strict=True))

    def conditions(self):
        """[5] Labels of the covariates in each condition, and the condition of each run; None without covariates."""
        covariates = self.ours["roles"].get("covariates")
        if covariates is None:
            assert not self.exists(f"{TABLES}/runs/condition")
            return None
        columns = [self.array(f"{TABLES}/conditions/{number}").tolist() for number in range(len(covariates))]
        return list(zip(*columns, strict=True)), self.array(f"{TABLES}/runs/condition").tolist()

    def manifest(self):
        """[8]"""
        columns = [self.array(f"{TABLES}/manifest/{name}").tolist() for name in ("key", "size", "crc32")]
        return [list(line) for line in zip(*columns, strict=True)]


def texts(raw):
    """[2.2]"""
    out, at = [], 4
    for _ in range(int.from_bytes(raw[:4], "little")):
        size = int.from_bytes(raw[at : at + 4], "little")
        out.append(raw[at + 4 : at + 4 + size].decode())
        at += 4 + size
    assert at == len(raw)
    return np.array(out, dtype=object)
