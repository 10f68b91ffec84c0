"""Stores whose checksums are right and whose content lies: everything that reads one refuses it, or reads the same.

A mutant changes a table, or what metadata say, and then makes chunk checksums, manifest and digests fit again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import traceback
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from lazypert.store.format import TABLES
from lazypert.store.manifest import MANIFEST, MANIFEST_FILES, Entry, manifest_digest, root_digest
from lazypert.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS, FACTS, GROUPS = f"{TABLES}/runs", f"{TABLES}/facts", f"{TABLES}/subgroups"
TABLES_OF_NUMBERS = (
    *(f"{RUNS}/{name}" for name in ("start", "stop", "cell_type", "perturbation", "dataset")),
    *(f"{GROUPS}/{name}" for name in ("run", "batch", "n_cells")),
    *(f"{TABLES}/{name}" for name in ("batch", "name_hash", "source_row")),
    *(f"{FACTS}/{name}" for name in ("target", "control_row", "control_sum", "total", "n_genes", "own_target")),
    *(f"obs/{name}/codes" for name in ("perturbation", "cell_type", "batch")),
    *(f"X/{name}" for name in ("indptr", "indices")),
)
"""Tables whose numbers are changed."""


def seal(store: Path, known: set[str] | None = None) -> None:
    """Make the manifest and the digests of a store fit its files, whose keys may be known from before a change."""
    root = store / "zarr.json"
    known = _keys(store) if known is None else known
    paths = sorted(path for path in store.rglob("*") if path.is_file() and path != root)
    keys = [key for path in paths if (key := path.relative_to(store).as_posix()) in known]
    entries = [_entry(store, key) for key in keys]
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name, values in (("size", [e.size for e in entries]), ("crc32", [e.crc32 for e in entries])):
        group[f"{MANIFEST}/{name}"][:] = np.array(values, group[f"{MANIFEST}/{name}"].dtype)
    metadata = json.loads(root.read_text())
    ours = metadata["attributes"]["lazypert"]
    ours["manifest_digest"] = manifest_digest(entries)
    files = [_entry(store, key) for key, _, _ in ours[MANIFEST_FILES]]
    ours[MANIFEST_FILES] = [[entry.key, entry.size, entry.crc32] for entry in files]
    ours["root_digest"] = root_digest(metadata)
    root.write_text(json.dumps(metadata))


def _keys(store: Path) -> set[str]:
    return {entry.key for entry in Store(store).read_manifest()}


def _entry(store: Path, key: str) -> Entry:
    data = (store / key).read_bytes()
    return Entry(key, len(data), zlib.crc32(data))


def mutate(store: Path, seed: int) -> str:
    """Change a table or the root attributes of a store: what was changed, as text."""
    rng, known = np.random.default_rng(seed), _keys(store)
    with zarr.config.set({"array.write_empty_chunks": True}):  # a chunk of zeros would lose its file
        said = _mutate_attribute(store, rng) if rng.random() < 0.25 else _mutate_table(store, rng)
        seal(store, known)
    return said


def _mutate_table(store: Path, rng: np.random.Generator) -> str:
    path = TABLES_OF_NUMBERS[rng.integers(len(TABLES_OF_NUMBERS))]
    array = zarr.open_group(store, mode="r+", use_consolidated=False)[path]
    values = array[:]
    old = values.copy()
    at = int(rng.integers(len(values)))
    kind = ("huge", "negative", "next", "swap", "repeat", "zero", "reverse")[rng.integers(7)]
    info = np.iinfo(values.dtype) if values.dtype.kind in "iu" else np.finfo(values.dtype)
    if kind == "huge":
        values[at] = info.max
    elif kind == "negative":
        values[at] = info.min if rng.random() < 0.5 or values.dtype.kind == "u" else -2
    elif kind == "next":
        values[at] = values[at] + 1 if values[at] < info.max else 0
    elif kind == "swap":
        other = int(rng.integers(len(values)))
        values[[at, other]] = values[[other, at]]
    elif kind == "repeat":
        values[at] = values[at - 1]
    elif kind == "zero":
        values[:] = 0
    else:
        values = values[::-1].copy()
    array[:] = values
    return f"{path}: {kind} at {at}" + ("" if (old != values).any() else " (unchanged)")


def _mutate_attribute(store: Path, rng: np.random.Generator) -> str:
    root = store / "zarr.json"
    metadata = json.loads(root.read_text())
    ours = metadata["attributes"]["lazypert"]
    places: list[tuple[Any, str]] = [(ours, key) for key in ("n_obs", "n_vars", "roles", "matrices", "summary")]
    places += [(ours["roles"], key) for key in ours["roles"]]
    places += [(ours["matrices"]["X"], key) for key in ours["matrices"]["X"]]
    places += [(ours["matrices"], "X")]
    parent, key = places[rng.integers(len(places))]
    odd = (None, -1, 0, 1, 7, 2**40, 2**70, 1.5, "text", [], {}, ["a", 1], True)
    new = odd[rng.integers(len(odd))]
    old, parent[key] = parent[key], new
    root.write_text(json.dumps(metadata))
    return f"attribute {key}: {str(old)[:30]} -> {new!r}"


# Everything that reads a store, each as a function of its path, giving something that can be compared.


def _result(path: Path) -> Any:
    import lazypert as lp

    config = lp.PerturbationPipelineConfig(sentence_size=4, enable_knockdown_filter=False)
    return lp.PerturbationPipeline(config).setup([path])


def _batch(path: Path) -> Any:
    import lazypert as lp

    loader = _result(path).train_dataloader(lp.LoaderConfig(batch_size=4, to="numpy"))
    batch = next(iter(loader))
    return np.asarray(batch.counts).tolist(), list(batch.barcodes()) if hasattr(batch, "barcodes") else None


def _dataset(path: Path) -> Any:
    import lazypert as lp

    return lp.open(path)


READS: dict[str, Callable[[Path], Any]] = {
    "open": lambda path: sorted(map(str, _dataset(path).variables)),
    "table": lambda path: _dataset(path).pert.table().to_csv(),
    "select": lambda path: _dataset(path).pert.select(perturbation="TP53").X.sum("cell").compute().values.tolist(),
    "obs": lambda path: [list(map(str, np.asarray(_dataset(path)[name]))) for name in ("perturbation", "batch", "u1")],
    "codes": lambda path: np.asarray(_dataset(path)["cell_type_code"]).tolist(),
    "knockdown": lambda path: _dataset(path).pert.knockdown().table.to_csv(),
    "splits": lambda path: _dataset(path).pert.split("random").train_indices[:].tolist(),
    "regroup": lambda path: _dataset(path).pert.regroup(pert_col="ordered", control_pert="low").table().to_csv(),
    "matrix": lambda path: _dataset(path).X[:, ::3].compute().values.tolist(),
    "anndata": lambda path: _dataset(path).pert.to_anndata().to_df().to_csv(),
    "pipeline": lambda path: np.asarray(_result(path).splits.test_indices[:]).tolist(),
}  # fmt: skip


def read_all(path: Path) -> dict[str, Any]:
    """Read a store in every way: what each gives, or an error of lazypert; anything else is raised."""
    from lazypert.errors import LazypertError

    found: dict[str, Any] = {}
    for name, read in READS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = read(path)
        except LazypertError as error:
            found[name] = error
        except BaseException as error:
            raise AssertionError(f"{name} raised {error!r}\n{traceback.format_exc()}") from error
    return found


def main() -> None:
    """Read mutants of a store, whose path is given, in every way; print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("first", type=int)
    parser.add_argument("stop", type=int)
    given = parser.parse_args()
    right = read_all(given.store)
    for seed in range(given.first, given.stop):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.zarr"
            shutil.copytree(given.store, path)
            said = mutate(path, seed)
            record: dict[str, Any] = {"seed": seed, "said": said}
            try:
                found = read_all(path)
            except AssertionError as error:
                record["raised"] = str(error)
            else:
                record["refused"] = {
                    name: f"{type(v).__name__}: {v}" for name, v in found.items() if isinstance(v, Exception)
                }
                record["differs"] = [
                    name for name, value in found.items() if not isinstance(value, Exception) and value != right[name]
                ]
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
