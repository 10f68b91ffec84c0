"""Run manifests: everything that a training run's batches depend on, in a small file that reproduces them."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazypert._internal.files import write_atomic
from lazypert._internal.paths import is_url, local_path, location
from lazypert._internal.validation import named_options, require
from lazypert.design.experiment_entries import DATASET_ROLES
from lazypert.downsampling.config import DownsamplingConfig
from lazypert.errors import ConfigError, RunChangedError
from lazypert.loading.loader import Loader
from lazypert.pipeline import PerturbationPipeline, PerturbationPipelineConfig
from lazypert.quality.target_map import is_targets_file
from lazypert.sources.anndata_source import PerturbationAnnDataSource
from lazypert.splits.options import SplitOptions
from lazypert.store.verify import verify as verify_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazypert.pipeline_result import PerturbationPipelineResult
    from lazypert.sources.base import PerturbationSource
    from lazypert.store.store import Store

_FORMAT, _VERSION = "lazypert run", 1

_LOCAL = "Manifests of runs are local files: copy it."

_SECTIONS = ("sources", "config", "split", "loaders", "versions")

_FILES = "files"
"""Optional section: digests of small files that the config names and the batches depend on."""

_PACKAGES = ("lazypert", "numpy", "numba", "jax", "zarr", "numcodecs", "anndata", "pandas", "xarray", "dask")

# Credentials; and options that do not change which batches there are.
_LEFT_OUT = ("storage_options", "sharding", "threads", "prefetch")


@dataclass(frozen=True, slots=True)
class Run:
    """A run that was set up again from its manifest.

    Attributes
    ----------
    result
        Result of the pipeline.
    loaders
        The loaders, in the order in which they were saved.
    """

    result: PerturbationPipelineResult
    loaders: tuple[Loader, ...]


@named_options
def save_run(path: str | Path, result: PerturbationPipelineResult, loaders: Loader | Iterable[Loader]) -> None:
    """Write a manifest of a run: sources and their digests, config, split, loaders, seeds and versions.

    Parameters
    ----------
    path
        The manifest, a ``.json`` file. If the split was not made by the config's own rule, it is saved beside it, as
        ``<name>.<digest>.split.csv.gz``. Neither ever contains credentials: `storage_options` are left out.
    result
        What ``PerturbationPipeline.setup`` returned.
    loaders
        Loaders of ``result.loader``; an empty list saves the pipeline alone.

    Raises
    ------
    ConfigError
        If the run uses a selection of a Dataset, which has no path, or a loader was not made by ``result.loader``.
    """
    path = local_path("path", path, _LOCAL)
    require(path.suffix == ".json", "path", str(path), "a name that ends in .json")
    loaders = (loaders,) if isinstance(loaders, Loader) else tuple(loaders)
    for loader in loaders:
        if loader.source is not result.source or not loader.arguments:
            raise ConfigError(f"loaders: got {loader!r}, expected loaders made by this result's `loader` method.")
    splits = result.original_splits
    # The digest in its name keeps the split of an earlier run whole until its manifest is replaced.
    file = f"{path.stem}.{splits.digest[:12]}.split.csv.gz" if result.is_split_given else None
    content: dict[str, Any] = {
        "sources": _sources(result),
        "config": _jsonable(_values(result)),
        "split": {"digest": splits.digest, "file": file},
        "loaders": [_loader(loader) for loader in loaders],
        "versions": _versions(),
    }
    if files := _file_digests(result.config):
        content[_FILES] = files
    digests = {name: _digest(section) for name, section in content.items()}
    manifest = {"format": _FORMAT, "version": _VERSION, **content, "digests": digests}
    text = json.dumps(manifest, indent=2)
    if file is not None:
        splits.save(path.parent / file)
    write_atomic(path, [text.encode() + b"\n"])


@named_options
def load_run(
    path: str | Path,
    *,
    sources: Sequence[str | Path] | str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
    verify: bool = False,
) -> Run:
    """Set up a run again from its manifest, and check that everything is as it was.

    The loaders yield the same batches, bit for bit, on any machine and with any supported Python version. Versions of
    packages are recorded for the reader, and not compared.

    Parameters
    ----------
    path
        What `save_run` wrote.
    sources
        Where the files are now, in the order of the manifest; by default where they were.
    storage_options
        Passed to fsspec for URLs; manifests never contain credentials.
    verify
        Also read every file of the stores, as `lazypert.verify` does. By default, the stores' own manifests are
        compared, which say what the files held when they were written, and the sizes of local files.

    Raises
    ------
    RunChangedError
        If a store, the split, a loader, or the manifest itself differs from what was saved; the message says which.
    ConfigError
        If the file is not a manifest.
    """
    path = local_path("path", path, _LOCAL)
    manifest = _read(path)
    if isinstance(sources, str | Path):
        sources = [sources]
    saved = manifest["sources"]
    paths = [entry["path"] for entry in saved] if sources is None else list(sources)
    if len(paths) != len(saved):
        raise ConfigError(f"sources: got {len(paths)} files, expected {len(saved)}, as in the manifest.")
    config = _config(manifest["config"], storage_options)
    found_files = _file_digests(config)
    for name, saved_digest in manifest.get(_FILES, {}).items():
        _compare(f"{name}: SHA-256 of {str(getattr(config, name))!r}", saved_digest, found_files.get(name))
    result = _set_up(path, manifest, config, paths)
    for store in result.source.stores:
        _check_files(store, verify=verify)
    for entry, found in zip(saved, _sources(result), strict=True):
        for name in ("digest", "n_cells", "n_genes"):
            _compare(f"source {entry['path']!r}: {name}", entry[name], found[name])
    _compare("split: digest", manifest["split"]["digest"], result.original_splits.digest)
    loaders = []
    for entry in manifest["loaders"]:
        loader = result.loader(**{name: _from_json(name, value) for name, value in entry["arguments"].items()})
        for name, value in entry["fingerprint"].items():
            _compare(f"loader {entry['arguments']['split']!r}: {name}", value, loader.fingerprint.get(name))
        loaders.append(loader)
    return Run(result, tuple(loaders))


def _set_up(
    path: Path, manifest: dict[str, Any], config: PerturbationPipelineConfig, paths: Sequence[str | Path]
) -> PerturbationPipelineResult:
    pipeline, file = PerturbationPipeline(config), manifest["split"]["file"]
    datasets = [entry["dataset"] for entry in manifest["sources"]]
    names = None if None in datasets else datasets
    sources = [
        _open_source(pipeline, source_path, entry["roles"], is_only=len(paths) == 1)
        for source_path, entry in zip(paths, manifest["sources"], strict=True)
    ]
    for source, entry in zip(sources, manifest["sources"], strict=True):
        _refuse_appended(source.store, entry)
    if file is None:
        return pipeline.setup(sources, names=names)
    split = path.parent / file
    if not split.is_file():
        raise RunChangedError(f"split: the file {str(split)!r} is missing. Restore it beside the manifest.")
    try:
        return pipeline.setup(sources, names=names, splits=split)
    except ConfigError as error:
        raise RunChangedError(f"split: {error}") from error


def _refuse_appended(store: Store, entry: dict[str, Any]) -> None:
    """Refuse a store that had the cells of the manifest until further ones were appended."""
    n_cells = entry["n_cells"]
    if n_cells != store.n_obs and any(record["first_row"] == n_cells for record in store.appended):
        raise RunChangedError(
            f"source {entry['path']!r}: got {store.n_obs:,} cells, expected {n_cells:,} as in the manifest: cells were "
            "appended to the store after the run was saved. Pass a store of the first files alone with sources=... "
            "(convert them again to another path), or save a new run."
        )


def _open_source(
    pipeline: PerturbationPipeline, path: str | Path, roles: dict[str, Any], *, is_only: bool
) -> PerturbationAnnDataSource:
    given = {name: _from_json(name, value) for name, value in roles.items()}
    config = replace(pipeline.config.source_config(path), **given)
    return PerturbationAnnDataSource(config, all_controls=is_only)


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"path: cannot read {str(path)!r} as a run manifest ({error}). Expected what save_run wrote."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT or manifest.get("version") != _VERSION:
        raise ConfigError(
            f"path: got {str(path)!r}, expected a run manifest of version {_VERSION}, as save_run writes it."
        )
    digests = manifest.get("digests")
    for name in [*_SECTIONS, *([_FILES] if _FILES in manifest else [])]:
        expected = digests.get(name) if isinstance(digests, dict) else None
        if name not in manifest or _digest(manifest[name]) != expected:
            raise RunChangedError(
                f"{name}: this section of {str(path)!r} was changed after it was written. Restore the manifest; to run "
                "with other options, set up a new run and save it."
            )
    return manifest


def _compare(name: str, saved: object, found: object) -> None:
    if saved != found:
        raise RunChangedError(
            f"{name}: got {found!r}, expected {saved!r} as in the manifest. The run cannot be reproduced with it: "
            "restore what was used, or save a new run."
        )


# Sections


def _sources(result: PerturbationPipelineResult) -> list[dict[str, Any]]:
    found = []
    datasets = getattr(result.source, "names", (None,))
    used = () if result.match_keys is None else result.match_keys.obs_columns
    for source, dataset in zip(_single_sources(result.source), datasets, strict=True):
        if source.groups.n_obs != source.n_rows:
            raise ConfigError(
                f"result: got a selection of {source.groups.n_obs:,} of the {source.n_rows:,} cells of "
                f"{source.store.path!r}, expected whole screens: a selection cannot be opened again by its path. "
                "Leave cells out with exclude_perturbations and similar options, or with splits=..."
            )
        if not isinstance(source.config.file_path, str | Path):
            raise ConfigError(
                f"result: got a screen opened from the Zarr store {source.store.path!r}, expected a path or a URL, "
                "which a run manifest can hold. Open the screen by its URL."
            )
        found.append(
            {
                "path": _without_credentials(location("file_path", source.config.file_path)),
                "dataset": dataset,
                "roles": _jsonable({name: getattr(source.config, name) for name in DATASET_ROLES}),
                "digest": source.content_digests(used)[0],
                "n_cells": source.store.n_obs,
                "n_genes": source.store.n_vars,
            }
        )
    return found


def _single_sources(source: PerturbationSource) -> tuple[Any, ...]:
    return getattr(source, "sources", (source,))


def _check_files(store: Store, *, verify: bool) -> None:
    """Compare the files of a store with its manifest: their sizes if they are local, and with `verify` their bytes."""
    if verify:
        verify_store(store.path, storage_options=store.storage_options)
    elif store.reader.has_files:
        for entry in store.read_manifest():
            _compare(f"store {store.path!r}: size of {entry.key}", entry.size, store.reader.size(entry.key))


def _loader(loader: Loader) -> dict[str, Any]:
    arguments = {name: value for name, value in loader.arguments.items() if name not in _LEFT_OUT}
    arguments |= {"host": loader.host, "n_hosts": loader.n_hosts}
    return {"arguments": _jsonable(arguments), "fingerprint": _jsonable(loader.fingerprint)}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _values(result: PerturbationPipelineResult) -> dict[str, Any]:
    """Options of the pipeline; without those of its own split if another one was used."""
    left_out = {*_LEFT_OUT}
    if result.is_split_given:
        left_out |= {field.name for field in fields(SplitOptions)} - {"seed", "separator"}
    values = {
        field.name: getattr(result.config, field.name) for field in fields(result.config) if field.name not in left_out
    }
    for name in ("cache_dir", "perturbation_features_file", "targets"):
        is_path = is_targets_file(values[name]) if name == "targets" else isinstance(values[name], str | Path)
        if is_path:
            values[name] = _without_credentials(location(name, values[name]))
    return values


def _file_digests(config: PerturbationPipelineConfig) -> dict[str, str]:
    """SHA-256 of the file of targets, if quality control reads one. Loaders have digests of all other files.

    Raises
    ------
    RunChangedError
        If it cannot be read.
    """
    if not config.enable_knockdown_filter or not is_targets_file(config.targets):
        return {}
    path = local_path("targets", str(config.targets), "Copy the file to this machine.")
    try:
        return {"targets": hashlib.sha256(path.read_bytes()).hexdigest()}
    except OSError as error:
        raise RunChangedError(
            f"targets: cannot read {str(path)!r} ({error.strerror}). Put the file back where it was."
        ) from error


def _config(values: dict[str, Any], storage_options: dict[str, Any] | None) -> PerturbationPipelineConfig:
    known = {field.name for field in fields(PerturbationPipelineConfig)}
    if unknown := sorted(set(values) - known):
        raise RunChangedError(
            f"config: {unknown[0]!r} is not an option of this version of lazypert. Use the version of the manifest."
        )
    given = {name: _from_json(name, value) for name, value in values.items()}
    return PerturbationPipelineConfig(**given, storage_options=storage_options)


# JSON


def _jsonable(value: Any) -> Any:
    if isinstance(value, DownsamplingConfig):
        return {"DownsamplingConfig": asdict(value)}
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy, and indexes of pandas
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _from_json(name: str, value: Any) -> Any:
    if name == "downsampling" and value is not None:
        return DownsamplingConfig(**value["DownsamplingConfig"])
    if isinstance(value, list):
        return tuple(_from_json("", item) for item in value)
    return value


def _digest(section: Any) -> str:
    return hashlib.sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()


def _without_credentials(path: str) -> str:
    """A path or URL without user, password, parameters and query; local paths become absolute."""
    if not is_url(path):
        return str(Path(path).absolute())
    return re.sub(r"//[^/]*@", "//", re.split(r"[?;#]", path, maxsplit=1)[0])
