"""Another implementation of the store format, written from docs/store-format.md.

Uses NumPy, C-Blosc and a CRC-32C function, and neither lazypert, Zarr nor AnnData. Numbers in brackets
are sections of that page.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import blosc

AXES = ("cell_type", "perturbation", "dataset", "batch")
RUN_AXES = AXES[:3]
TABLES = "obs/__lazypert__"
COLUMN, MATRIX = (65_536, 1_048_576), (65_536, 8_388_608)
ABSENT = 2**64 - 1
WORD = 2**64 - 1
NAMES = {"bool": "?", "string": "O"}
ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}
TEXT = {"encoding-type": "string-array", "encoding-version": "0.2.0"}


def crc32c(data):
    return google_crc32c.value(bytes(data)).to_bytes(4, "little")


def codecs(dtype, *, is_matrix_data=False, is_narrow_index=False):
    """[2.1, 2.2] Codec chain of the inner chunks."""
    dtype = np.dtype(dtype)
    is_text, size = dtype.kind == "O", 1 if dtype.kind == "O" else dtype.itemsize
    first = {"name": "vlen-utf8"} if is_text else {"name": "bytes"}
    if size > 1:
        first["configuration"] = {"endian": "little"}
    shuffle, block = ("bitshuffle", 8192) if is_matrix_data and dtype.kind in "iu" else ("shuffle", 16384)
    block = 8192 if is_narrow_index else block
    packed = {"typesize": size, "cname": "lz4", "clevel": 5, "shuffle": shuffle, "blocksize": block}
    return [first, {"name": "blosc", "configuration": packed}, {"name": "crc32c"}]


def astype(dtype, declared):
    """[3.1, 3.2] Codec that gives readers another dtype than the stored one."""
    dtypes = {"encode_dtype": np.dtype(dtype).str, "decode_dtype": np.dtype(declared).str}
    return {"name": "numcodecs.astype", "configuration": dtypes}


def declared_dtype(dtype, low, high):
    """[3.1] Dtype of `data` in its metadata."""
    if np.dtype(dtype).kind == "f":
        return np.dtype(dtype)
    largest = max(-low, high)
    return np.dtype("f4" if largest <= 2**24 else "f8" if largest <= 2**53 else dtype)


def grid(length, limits=COLUMN):
    """[2.1] Elements per chunk and per shard."""
    chunk = max(1, min(limits[0], length))
    return chunk, min(limits[1], chunk * max(1, math.ceil(length / chunk)))


def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return z ^ (z >> 31)


def name_hash(name):
    """[6]"""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 & WORD
    return mix(value)


def name_hashes(names, keys):
    """[6] Hash of each cell, in the order of the source; equal names of one run get different ones."""
    seen, out = {}, []
    for name, key in zip(names, keys, strict=True):
        k = seen[key, name] = seen.get((key, name), -1) + 1
        out.append(name_hash(name) if k == 0 else mix((name_hash(name) + k * 0x9E3779B97F4A7C15) & WORD))
    return out


def run_table(keys, hashes):
    """[5, 6] Row at each position, and start, stop and key of each run. Labels may stand for codes, None for -1."""
    ordered = sorted(range(len(keys)), key=lambda r: ([(label in (-1, None), label) for label in keys[r]], hashes[r]))
    runs = []
    for position, row in enumerate(ordered):
        if not runs or runs[-1][2] != keys[row]:
            runs.append([position, position, keys[row]])
        runs[-1][1] = position + 1
    return ordered, runs


def subgroups(runs, batch):
    """[5] (run, batch, number of cells) from runs and the batch at each position; missing ones are None or -1."""
    found = {}
    for number, (start, stop, _) in enumerate(runs):
        for label in batch[start:stop]:
            found[number, label] = found.get((number, label), 0) + 1
    ordered = sorted(found, key=lambda pair: (pair[0], pair[1] is not None, pair[1]))
    return [(*pair, found[pair]) for pair in ordered]


def data_dtype(values):
    """[3] Dtype of the values of a matrix."""
    finite = values[np.isfinite(values)]
    low, high = min(0, finite.min(initial=0)), max(0, finite.max(initial=0))
    if len(finite) == len(values) and (finite == np.floor(finite)).all() and max(-low, high) <= 2**53:
        for name in ("u2", "u4") if low >= 0 else ("i4",):
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return np.dtype(name)
        return np.dtype("i8")
    return np.dtype("f4" if (finite.astype("f4") == finite).all() else "f8")


def root_digest(metadata):
    """[8]"""
    attributes = metadata["attributes"]
    ours = {key: value for key, value in attributes["lazypert"].items() if key != "root_digest"}
    sealed = {**metadata, "attributes": {**attributes, "lazypert": ours}}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def manifest_digest(entries):
    """[8]"""
    lines = sorted(f"{key}\t{size}\t{crc}\n" for key, size, crc in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def entry(root, path):
    data = path.read_bytes()
    return [path.relative_to(root).as_posix(), len(data), zlib.crc32(data)]


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
        dtype = self.stored_dtype(path)
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


class SpecWriter:
    """Writes a store of counts with text labels, one file, in grouped order."""

    def __init__(self, root):
        self.root = Path(root)

    def _write(self, path, data):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def group(self, path, attrs):
        self._json(path, {"node_type": "group", "attributes": attrs})

    def _json(self, path, node):
        self._write(f"{path}/zarr.json", json.dumps({"zarr_format": 3, **node}).encode())

    def array(self, path, values, attrs=None, *, limits=COLUMN, is_matrix_data=False, index_dtype=None):
        values = np.asarray(values)
        is_text = values.dtype.kind in "OU"
        values = values.astype(object) if is_text else values
        declared, conversion = np.dtype(index_dtype or values.dtype), []
        inner = codecs(values.dtype, is_matrix_data=is_matrix_data, is_narrow_index=declared != values.dtype)
        chunk, shard = grid(len(values), limits)
        if is_matrix_data:
            declared = declared_dtype(values.dtype, values.min(initial=0), values.max(initial=0))
        if declared != values.dtype:
            conversion = [astype(values.dtype, declared)]
        index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": [chunk],
            "codecs": conversion + inner,
            "index_codecs": index_codecs,
            "index_location": "end",
        }
        self._json(
            path,
            {
                "node_type": "array",
                "shape": [len(values)],
                "data_type": "string" if is_text else declared.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": "" if is_text else declared.type(0).item(),
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "attributes": (TEXT if is_text else {}) if attrs is None else attrs,
            },
        )
        for k in range(math.ceil(len(values) / shard)):
            self._write(f"{path}/c/{k}", self._shard(values[k * shard : (k + 1) * shard], chunk, shard, inner))

    def _shard(self, values, chunk, shard, inner):
        packing, body, index = inner[1]["configuration"], b"", []
        shuffle = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}[packing["shuffle"]]
        for start in range(0, len(values), chunk):
            part = values[start : start + chunk]
            if values.dtype.kind == "O":
                encoded = [text.encode() for text in [*part, *[""] * (chunk - len(part))]]
                raw = chunk.to_bytes(4, "little") + b"".join(len(t).to_bytes(4, "little") + t for t in encoded)
            else:
                raw = np.append(part, np.zeros(chunk - len(part), part.dtype))
            packed = blosc.compress(raw, b"lz4", 5, shuffle, packing["blocksize"])
            index += [len(body), len(packed) + 4]
            body += packed + crc32c(packed)
        index += [ABSENT] * (2 * shard // chunk - len(index))
        raw = np.array(index, "<u8").tobytes()
        return body + raw + crc32c(raw)

    def matrix(self, path, dense):
        self.group(path, {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(dense.shape)})
        data = dense[dense != 0]
        index = "i4" if len(data) < 2**31 else "i8"
        self.array(f"{path}/data", data.astype(data_dtype(data)), {}, limits=MATRIX, is_matrix_data=True)
        stored = "u2" if dense.shape[1] <= 65536 else index
        self.array(f"{path}/indices", np.nonzero(dense)[1].astype(stored), {}, limits=MATRIX, index_dtype=index)
        self.array(f"{path}/indptr", np.append(0, np.cumsum((dense != 0).sum(1))).astype(index), {})
        return {
            "n_cols": dense.shape[1],
            "nnz": len(data),
            "sum": float(data.sum()),
            "integral": data_dtype(data).kind in "iu",
            "minimum": float(data.min(initial=0)),
            "maximum": float(data.max(initial=0)),
            "n_nonfinite": 0,
        }

    def frame(self, path, index, columns):
        attrs = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
        self.group(path, {**attrs, "column-order": list(columns)})
        self.array(f"{path}/_index", index)
        for name, values in columns.items():
            labels = sorted(set(values))
            self.group(
                f"{path}/{name}", {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
            )
            self.array(f"{path}/{name}/categories", labels)
            codes = "i1" if len(labels) < 128 else "i2" if len(labels) < 32_768 else "i4"
            self.array(f"{path}/{name}/codes", np.array([labels.index(v) for v in values], codes), ARRAY)

    def facts(self, counts, perturbation, control, genes, labels, runs, batch):
        base, named = f"{TABLES}/facts", labels["perturbation"]
        target = [genes.index(name) if name in genes and name != control else -1 for name in named]
        own = [
            np.nan if name == control or target[named.index(name)] < 0 else row[target[named.index(name)]]
            for row, name in zip(counts, perturbation, strict=True)
        ]
        of_controls = [
            [row for row in range(*runs[run][:2]) if batch[row] == label]
            for run, label, _ in subgroups(runs, batch)
            if named[runs[run][2][1]] == control
        ]
        self.group(base, {"gene_col": None})
        self.array(f"{base}/total", counts.sum(1).astype("f8"))
        self.array(f"{base}/n_genes", (counts != 0).sum(1).astype("i4"))
        self.array(f"{base}/own_target", np.array(own, "f8"))
        self.array(f"{base}/target", np.array(target, "i4"))
        self.array(
            f"{base}/control_sum",
            np.array([[0 if t < 0 else counts[rows, t].sum() for t in target] for rows in of_controls], "f8").ravel(),
        )
        self.array(f"{base}/control_row", np.array([rows[0] for rows in of_controls], "i8"))

    def write(self, counts, names, obs, genes, roles, sources):
        """Write a whole store.

        Parameters
        ----------
        counts
            (n_obs, n_vars) in the order of the source.
        obs
            Lists of labels, by column.
        """
        of_axis = [roles[role] for role in ("cell_type_col", "pert_col", "dataset_col", "batch_col")]
        labels = {a: ["all"] if c is None else sorted(set(obs[c])) for a, c in zip(AXES, of_axis, strict=True)}
        keys = [
            tuple(0 if c is None else labels[a].index(obs[c][row]) for a, c in zip(RUN_AXES, of_axis, strict=False))
            for row in range(len(names))
        ]
        hashes = name_hashes(names, keys)
        source_row, runs = run_table(keys, hashes)
        counts = counts[source_row]
        obs = {name: [values[row] for row in source_row] for name, values in obs.items()}
        summary = self.matrix("X", counts)
        for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
            self.group(name, DICT)
        self.frame("obs", [names[row] for row in source_row], obs)
        self.frame("var", genes, {})
        for group in ("", "/labels", "/runs", "/subgroups", "/manifest"):
            self.group(TABLES + group, {})
        self.array(f"{TABLES}/source_row", np.array(source_row, "i4"))
        self.array(f"{TABLES}/runs/start", np.array([run[0] for run in runs], "i8"))
        self.array(f"{TABLES}/runs/stop", np.array([run[1] for run in runs], "i8"))
        for axis in AXES:
            self.array(f"{TABLES}/labels/{axis}", labels[axis])
        for number, axis in enumerate(RUN_AXES):
            self.array(f"{TABLES}/runs/{axis}", np.array([run[2][number] for run in runs], "i4"))
        batch = [0 if of_axis[3] is None else labels["batch"].index(label) for label in obs[of_axis[3]]]
        dtype = "i1" if len(labels["batch"]) <= 128 else "i2" if len(labels["batch"]) <= 32_768 else "i4"
        self.array(f"{TABLES}/batch", np.array(batch, dtype))
        for number, (name, kind) in enumerate((("run", "i8"), ("batch", "i4"), ("n_cells", "i8"))):
            values = np.array([entry[number] for entry in subgroups(runs, batch)], kind)
            self.array(f"{TABLES}/subgroups/{name}", values)
        self.array(f"{TABLES}/name_hash", np.array([hashes[row] for row in source_row], "u8"))
        perturbation, control = obs[roles["pert_col"]], roles["control_pert"]
        self.facts(counts, perturbation, control, list(genes), labels, runs, batch)
        self._seal(
            {
                "format_version": 3,
                "sources": sources,
                "roles": roles,
                "order": "grouped",
                "layer": None,
                "n_obs": len(names),
                "n_vars": len(genes),
                "matrices": {"X": summary},
                "summary": {
                    "n_groups": len({key[:2] for key in keys}),
                    "n_perturbations": len(labels["perturbation"]),
                    "n_cell_types": len(labels["cell_type"]),
                    "n_batches": len(labels["batch"]),
                    "n_controls": perturbation.count(control),
                    "n_unlabelled": 0,
                },
                "warnings": [],
            }
        )

    def _seal(self, ours):
        entries = sorted(entry(self.root, path) for path in self.root.rglob("*") if path.is_file())
        for number, (name, kind) in enumerate((("key", object), ("size", "i8"), ("crc32", "u4"))):
            self.array(f"{TABLES}/manifest/{name}", np.array([line[number] for line in entries], kind))
        folder = self.root / TABLES / "manifest"
        files = [path for name in ("crc32", "key", "size") for path in (folder / name).rglob("*") if path.is_file()]
        ours |= {
            "manifest_digest": manifest_digest(entries),
            "manifest_files": sorted(entry(self.root, path) for path in files),
        }
        nodes = {
            path.parent.relative_to(self.root).as_posix(): json.loads(path.read_text())
            for path in sorted(self.root.rglob("zarr.json"))
        }
        attributes = {"encoding-type": "anndata", "encoding-version": "0.1.0", "lazypert": ours}
        consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes}
        root = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": attributes,
            "consolidated_metadata": consolidated,
        }
        ours["root_digest"] = root_digest(root)
        self._write("zarr.json", json.dumps(root).encode())
