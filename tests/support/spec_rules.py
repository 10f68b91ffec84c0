"""Rules of the store format for another implementation, written from docs/store-format.md.

`spec_store` reads and `spec_writer` writes stores with them. They use NumPy, C-Blosc and a CRC-32C function, and
neither lazypert, Zarr nor AnnData. Numbers in brackets are sections of that page.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib

import google_crc32c
import numpy as np

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


def codecs(dtype, *, is_matrix_data=False, is_narrow_index=False, is_delta=False):
    """[2.1, 2.2] Codec chain of the inner chunks."""
    dtype = np.dtype(dtype)
    is_text, size = dtype.kind == "O", 1 if dtype.kind == "O" else dtype.itemsize
    is_bitshuffled = is_matrix_data and dtype.kind in "iu"
    first = {"name": "vlen-utf8"} if is_text else {"name": "bytes"}
    if size > 1:
        first["configuration"] = {"endian": "little"}
    shuffle = "bitshuffle" if is_bitshuffled or is_delta else "shuffle"
    block = 8192 if is_bitshuffled or is_narrow_index else 16384
    packed = {"typesize": size, "cname": "lz4", "clevel": 5, "shuffle": shuffle, "blocksize": block}
    return [first, {"name": "blosc", "configuration": packed}, {"name": "crc32c"}]


def astype(dtype, declared):
    """[3.1, 3.2] Codec that gives readers another dtype than the stored one."""
    dtypes = {"encode_dtype": np.dtype(dtype).str, "decode_dtype": np.dtype(declared).str}
    return {"name": "numcodecs.astype", "configuration": dtypes}


def delta(dtype):
    """[3.3] Codec that stores differences."""
    return {"name": "numcodecs.delta", "configuration": {"dtype": np.dtype(dtype).str, "astype": np.dtype(dtype).str}}


def differences(chunk):
    """[3.3] Elements of a chunk as they are stored behind that codec."""
    return np.concatenate([chunk[:1], chunk[1:] - chunk[:-1]])


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
