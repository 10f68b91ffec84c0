"""Files of splits: tables of cell names, and rules."""

from __future__ import annotations

import csv
import io
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lazypert._internal.files import write_atomic
from lazypert._internal.paths import local_path
from lazypert._internal.validation import make_config, require
from lazypert.errors import ConfigError, LazypertError, near_matches
from lazypert.splits.rule_registry import RULES
from lazypert.splits.split_table import CELL, DATASET, SPLIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")

RULE_SUFFIX = ".json"

_FORMAT, _VERSION = "lazypert split rule", 1

_DIGEST = b"lazypert split digest"  # key in the metadata of a Parquet file


def split_path(path: str | Path) -> Path:
    """Return the path of a split's file, with ``~`` and variables replaced."""
    return local_path("path", path, "Files of splits are local: copy it.")


def suffix_of(path: str | Path, *, rules: bool = True) -> str:
    """Return the suffix that says what kind of file a split is kept in."""
    known = (*TABLE_SUFFIXES, RULE_SUFFIX) if rules else TABLE_SUFFIXES
    require(isinstance(path, str | Path), "path", path, "the path of a file")
    suffix = next((suffix for suffix in known if str(path).endswith(suffix)), None)
    if suffix is None:
        raise ConfigError(f"path: got {str(path)!r}, expected a name that ends in {', '.join(known)}.")
    return suffix


# Tables


def write_table(path: str | Path, frames: Iterable[pd.DataFrame], digest: str) -> None:
    """Write a table of cells, which appears under its name only once it is complete."""
    suffix = suffix_of(path, rules=False)
    if suffix == ".parquet":
        write_atomic(Path(path), [_parquet_bytes(frames, digest)])
        return
    lines = _text(frames, "\t" if suffix.startswith(".tsv") else ",")
    write_atomic(Path(path), _compressed(lines) if suffix.endswith(".gz") else lines)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table as text; empty fields stay empty text.

    Raises
    ------
    ConfigError
        If there is no such file, or it is not a table.
    """
    suffix = suffix_of(path, rules=False)
    _require_file(path)
    try:
        if suffix == ".parquet":
            return names_as_column(_require_pyarrow().read_table(path).to_pandas())
        separator = "\t" if suffix.startswith(".tsv") else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (LazypertError, MemoryError):  # neither says that the table is malformed
        raise
    except Exception as error:  # pandas and pyarrow raise many types
        raise ConfigError(f"path: got {str(path)!r}, which cannot be read as a {suffix} table: {error}") from error


def names_as_column(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its index as the first column, if that holds texts."""
    if pd.api.types.is_numeric_dtype(frame.index.dtype):
        return frame
    name = next(name for name in (frame.index.name, "index", "cell_name") if name not in (None, *frame.columns))
    return frame.rename_axis(index=name).reset_index()


def digest_in(path: str | Path) -> str | None:
    """Return the digest that a Parquet file holds; other tables hold none."""
    if suffix_of(path, rules=False) != ".parquet":
        return None
    metadata = _require_pyarrow().read_schema(path).metadata or {}
    return metadata[_DIGEST].decode() if _DIGEST in metadata else None


def saved_columns(frame: pd.DataFrame, path: str | Path) -> dict[str, str | None]:
    """Return the columns of a table that a split was saved in."""
    missing = [name for name in (CELL, SPLIT) if name not in frame.columns]
    if missing:
        raise ConfigError(
            f"path: got {str(path)!r} with the columns {list(map(str, frame.columns))!r}, expected {CELL!r} and "
            f"{SPLIT!r}. "
            "For a table that was not saved by lazypert, use SplitResult.from_table and name its columns."
        )
    return {"cell": CELL, "split": SPLIT, "dataset": DATASET if DATASET in frame.columns else None}


def _text(frames: Iterable[pd.DataFrame], separator: str) -> Iterator[bytes]:
    is_first = True
    for frame in frames:
        buffer = io.StringIO()
        # A carriage return ends a line for readers, but is not quoted by default.
        quoting = csv.QUOTE_ALL if frame[CELL].str.contains("\r").any() else csv.QUOTE_MINIMAL
        frame.to_csv(buffer, sep=separator, index=False, header=is_first, lineterminator="\n", quoting=quoting)
        is_first = False
        yield buffer.getvalue().encode()
    if is_first:
        yield f"{CELL}{separator}{SPLIT}\n".encode()


def _compressed(buffers: Iterable[bytes]) -> Iterator[bytes]:
    """Compress with gzip, without a date, so that equal splits are equal files."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for data in buffers:
        yield packer.compress(data)
    yield packer.flush()


def _parquet_bytes(frames: Iterable[pd.DataFrame], digest: str) -> Any:
    pyarrow, parquet = _require_pyarrow(whole=True), _require_pyarrow()
    tables = [pyarrow.Table.from_pandas(frame, preserve_index=False) for frame in frames]
    if not tables:
        tables = [
            pyarrow.table({CELL: pyarrow.array([], pyarrow.string()), SPLIT: pyarrow.array([], pyarrow.string())})
        ]
    table = pyarrow.concat_tables(tables).replace_schema_metadata({_DIGEST: digest.encode()})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue()


def _require_pyarrow(*, whole: bool = False) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            "path: Parquet files need pyarrow, which is not installed. Install it (pip install pyarrow), or use "
            ".csv.gz."
        ) from error
    return pa if whole else pq


def _require_file(path: str | Path) -> None:
    if not Path(path).is_file():
        raise ConfigError(f"path: got {str(path)!r}, expected a file. There is none of this name.")


# Rules


def write_rule(path: str | Path, splitter: Any, digest: str) -> None:
    """Write a splitter's config, and the digest of what it split."""
    config = {
        name: value
        for name, field in type(splitter.config).__dataclass_fields__.items()
        if (value := getattr(splitter.config, name)) != field.default
    }
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "splitter": type(splitter).__name__,
        "config": config,
        "digest": digest,
    }
    write_atomic(Path(path), [json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"])


def read_rule(path: str | Path) -> tuple[Any, str]:
    """Read a splitter and the digest of what it has split.

    Raises
    ------
    ConfigError
        If the file is not a rule that this version can apply.
    """
    _require_file(path)
    try:
        document = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ConfigError(f"path: got {str(path)!r}, which is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ConfigError(f"path: got {str(path)!r}, expected a file in which SplitResult.save has kept a rule.")
    if document.get("version") != _VERSION:
        raise ConfigError(
            f"path: got version {document.get('version')!r} in {str(path)!r}, expected {_VERSION}. Upgrade lazypert."
        )
    name, config = document.get("splitter"), document.get("config")
    if name not in RULES or not isinstance(config, dict):
        raise ConfigError(
            f"path: got the splitter {name!r} in {str(path)!r}, expected one with a config. "
            f"{near_matches(str(name), RULES)}"
        )
    splitter_type, config_type = RULES[name]
    return splitter_type(make_config(config_type, {key: _tuples(value) for key, value in config.items()})), str(
        document.get("digest")
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
