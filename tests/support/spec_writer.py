"""A writer of stores, written from docs/store-format.md."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numcodecs import blosc

from tests.support.spec_rules import (
    ABSENT,
    ARRAY,
    AXES,
    COLUMN,
    DICT,
    MATRIX,
    RUN_AXES,
    TABLES,
    TEXT,
    astype,
    codecs,
    crc32c,
    data_dtype,
    declared_dtype,
    delta,
    differences,
    entry,
    grid,
    manifest_digest,
    name_hashes,
    root_digest,
    run_table,
    subgroups,
)


class SpecWriter:
    """Writes a store of counts with text labels, one file, in grouped order."""

    def __init__(self, root, *, is_compact=False):
        self.root, self.is_compact = Path(root), is_compact

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
        is_delta, is_narrow = self.is_compact and index_dtype is not None, declared != values.dtype
        inner = codecs(values.dtype, is_matrix_data=is_matrix_data, is_narrow_index=is_narrow, is_delta=is_delta)
        chunk, shard = grid(len(values), limits)
        if is_matrix_data:
            declared = declared_dtype(values.dtype, values.min(initial=0), values.max(initial=0))
        if declared != values.dtype:
            conversion = [astype(values.dtype, declared)]
        if is_delta:
            conversion.append(delta(values.dtype))
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
            self._write(
                f"{path}/c/{k}", self._shard(values[k * shard : (k + 1) * shard], chunk, shard, inner, is_delta)
            )

    def _shard(self, values, chunk, shard, inner, is_delta):
        packing, body, index = inner[1]["configuration"], b"", []
        shuffle = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}[packing["shuffle"]]
        for start in range(0, len(values), chunk):
            part = values[start : start + chunk]
            if values.dtype.kind == "O":
                encoded = [text.encode() for text in [*part, *[""] * (chunk - len(part))]]
                raw = chunk.to_bytes(4, "little") + b"".join(len(t).to_bytes(4, "little") + t for t in encoded)
            else:
                raw = np.append(part, np.zeros(chunk - len(part), part.dtype))
                raw = differences(raw) if is_delta else raw
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
