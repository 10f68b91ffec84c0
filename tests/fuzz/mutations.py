"""Changes of valid files, each a function of a random generator: of bytes, of HDF5 objects, of Zarr metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

_ODD_NUMBERS = (0, 1, -1, 2, 127, 255, 65_535, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
_ODD_TEXT = (
    "",
    "/",
    "..",
    "array",
    "csr_matrix",
    "csc_matrix",
    "categorical",
    "dataframe",
    "null",
    "x" * 300,
    "\udcff",
    "é",
)
_ODD_TYPES = ("i1", "u1", "i4", "u8", "f2", "f4", "f8", "S3", "bool", "c8", "V5")


def mutate(path: Path, rng: np.random.Generator) -> str:
    """Change a file, or a file of a folder: what was changed, as text."""
    if path.is_dir():
        return _mutate_folder(path, rng)
    if path.suffix == ".zip" or rng.random() < 0.5:
        return _mutate_bytes(path, rng)
    return _mutate_objects(path, rng)


def _mutate_folder(folder: Path, rng: np.random.Generator) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[rng.integers(len(files))]
    if path.suffix == ".json" or path.name.startswith(".z"):
        if rng.random() < 0.7:
            return f"{path.relative_to(folder)}: {_mutate_json(path, rng)}"
    elif rng.random() < 0.15:
        path.unlink()
        return f"{path.relative_to(folder)} deleted"
    elif rng.random() < 0.15:
        other = files[rng.integers(len(files))]
        path.write_bytes(other.read_bytes())
        return f"{path.relative_to(folder)} replaced by {other.relative_to(folder)}"
    return f"{path.relative_to(folder)}: {_mutate_bytes(path, rng)}"


def _mutate_bytes(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    n = len(data)
    if not n:
        path.write_bytes(b"\0")
        return "a byte where there was none"
    at, length = int(rng.integers(n)), int(min(n, 2 ** rng.integers(0, 10)))
    kind = ("flip", "set", "noise", "zero", "cut", "insert", "copy", "grow")[rng.integers(8)]
    if kind == "flip":
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == "set":
        data[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
    elif kind == "noise":
        data[at : at + length] = rng.bytes(len(data[at : at + length]))
    elif kind == "zero":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = rng.bytes(length)
    elif kind == "copy":
        source = int(rng.integers(n))
        piece = data[source : source + min(length, n - at)]
        data[at : at + len(piece)] = piece
    else:
        data += rng.bytes(length)
    path.write_bytes(data)
    return f"{kind} at byte {at} of {n} (length {length})"


def _mutate_json(path: Path, rng: np.random.Generator) -> str:
    document = json.loads(path.read_text())
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        for key, value in items:
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(document)
    if not places:
        document["extra"] = 1
        path.write_text(json.dumps(document))
        return "a key added"
    parent, key = places[rng.integers(len(places))]
    old = parent[key]
    if rng.random() < 0.3:
        del parent[key]
        new: Any = "(deleted)"
    else:
        odd = (None, True, [], {}, [0], "", *_ODD_NUMBERS, *_ODD_TEXT[:-2], *_ODD_TYPES)
        new = parent[key] = odd[rng.integers(len(odd))]
    path.write_text(json.dumps(document))
    return f"{key!r}: {str(old)[:40]!r} -> {new!r}"


def _mutate_objects(path: Path, rng: np.random.Generator) -> str:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[rng.integers(len(names))]
        node = file[name]
        other = names[rng.integers(len(names))]
        roll = rng.random()
        if roll < 0.15:
            del file[name]
            return f"{name} deleted"
        if roll < 0.4:
            del file[name]
            kind = int(rng.integers(5))
            if kind == 0:
                file[name] = h5py.SoftLink((f"/{name}", f"/{other}", "/nowhere", "..", "")[rng.integers(5)] or "/")
            elif kind == 1:
                file[name] = h5py.ExternalLink(("none.h5", path.name, "..", "/dev/null")[rng.integers(4)], f"/{other}")
            elif kind == 2:
                file[name] = file[other] if other in file else file["/"]
            elif kind == 3:
                file[name] = np.dtype("i4")
            else:
                file[name] = h5py.Empty("f4") if rng.random() < 0.5 else rng.integers(0, 9, (3,))
            return f"{name} replaced by a link or object of kind {kind} ({other})"
        if roll < 0.65 and len(node.attrs):
            return f"{name}: {_mutate_attribute(node, rng)}"
        if isinstance(node, h5py.Dataset):
            return f"{name}: {_mutate_dataset(file, name, rng)}"
        return f"{name}: {_mutate_attribute(node, rng)}"


def _mutate_attribute(node: Any, rng: np.random.Generator) -> str:
    names = [*node.attrs] or ["encoding-type"]
    name = names[rng.integers(len(names))]
    if rng.random() < 0.3 and name in node.attrs:
        del node.attrs[name]
        return f"attribute {name} deleted"
    odd = (
        *_ODD_NUMBERS,
        *_ODD_TEXT[:-2],
        [],
        [1, 2],
        [0, 0],
        [-1, 5],
        [2**40, 2**40],
        1.5,
        float("nan"),
        h5py.Empty("i4"),
    )
    value = odd[rng.integers(len(odd))]
    node.attrs[name] = value
    return f"attribute {name} = {value!r}"


def _mutate_dataset(file: h5py.File, name: str, rng: np.random.Generator) -> str:
    node, attrs = file[name], dict(file[name].attrs)
    values = node[()] if node.shape is not None else np.zeros(3)
    values = np.array(values)
    kind = ("value", "shorter", "longer", "type", "shape", "scalar", "order")[rng.integers(7)]
    said = kind
    if kind == "value" and values.size and values.dtype.kind in "iufb":
        number = _ODD_NUMBERS[rng.integers(len(_ODD_NUMBERS))]
        flat = values.reshape(-1)
        position = int(rng.integers(flat.size))
        if values.dtype.kind == "f" and rng.random() < 0.4:
            number = float(rng.choice([np.nan, np.inf, -np.inf, 0.5, 1e300]))
        with np.errstate(all="ignore"):
            flat[position] = np.array(number).astype(values.dtype)
        values, said = flat.reshape(values.shape), f"value {position} = {number}"
    elif kind == "shorter" and values.ndim:
        values = values[: len(values) // 2]
    elif kind == "longer" and values.ndim and len(values):
        values = np.concatenate([values, values[:1]])
    elif kind == "type" and values.dtype.kind in "iufb":
        dtype = _ODD_TYPES[rng.integers(len(_ODD_TYPES) - 1)]
        with np.errstate(all="ignore"):
            values, said = values.astype(dtype), f"type {dtype}"
    elif kind == "shape" and values.ndim:
        values = values.reshape((*values.shape, 1))
    elif kind == "scalar" and values.size:
        values = values.reshape(-1)[0]
    elif kind == "order" and values.ndim:
        values = values[::-1]
    del file[name]
    dtype = node.dtype if h5py.check_string_dtype(node.dtype) and np.asarray(values).dtype.kind == "O" else None
    file.create_dataset(name, data=values, dtype=dtype)
    for key, value in attrs.items():
        file[name].attrs[key] = value
    return said
