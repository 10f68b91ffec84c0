"""Arrays and columns of a store by their paths: what the metadata say of them, and their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from lazypert.store.arrays import StringArray
from lazypert.store.content_checks import check_codes, check_length, contradiction
from lazypert.store.damage import store_damaged
from lazypert.store.format import TABLES, Grid, stored_elements
from lazypert.store.replaced import CheckedReader
from lazypert.store.sharded_array import ShardedArray

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.store.byte_reader import ByteReader


class StoreColumns:
    """Arrays and columns of a store; `Store` knows what they are.

    Parameters
    ----------
    reader
        Where the files are.
    root
        Root group.
    root_identity
        Identity of the root metadata when the store was opened.
    attrs
        The store's root attributes.
    """

    def __init__(self, reader: ByteReader, root: Any, root_identity: Any, attrs: dict[str, Any]) -> None:
        self.reader, self.attrs = reader, attrs
        self._root, self._root_identity = root, root_identity

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return int(self.attrs["n_obs"])

    def _node(self, path: str) -> Any:
        """Return an array or group; one that is missing is damage, because the store says that it has it."""
        try:
            return self._root[path]
        except (KeyError, ValueError, TypeError) as error:
            raise contradiction(path, "there is no such element, or its metadata cannot be read") from error

    def _attribute(self, path: str, name: str) -> Any:
        try:
            return self._node(path).attrs[name]
        except KeyError as error:
            raise contradiction(f"{path}/zarr.json", f"the attribute {name!r} is missing") from error

    def _column_order(self, path: str) -> tuple[str, ...]:
        names = self._attribute(path, "column-order")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise contradiction(f"{path}/zarr.json", f"column-order: got {str(names)[:60]!r}, expected a list of names")
        return tuple(names)

    def encoding(self, path: str) -> str:
        """AnnData encoding type of an element, such as ``"categorical"``."""
        return str(self._attribute(path, "encoding-type"))

    def is_ordered(self, path: str) -> bool:
        """Whether a categorical column is ordered."""
        return bool(self._attribute(path, "ordered"))

    def text_dtype(self, path: str) -> pd.StringDtype:
        """Return the pandas dtype of a nullable text column, whose missing values are NA or NaN."""
        is_nan = self._root[path].attrs.get("na-value") == "NaN"
        return pd.StringDtype(na_value=float("nan")) if is_nan else pd.StringDtype()

    # Arrays, either opened for reading by ranges or read completely.

    def open_array(self, path: str) -> ShardedArray:
        """Open a numeric array, such as ``"obs/batch/codes"``.

        Its dtype is the stored one, which differs from the one that other readers see in the values of a matrix.
        """
        array = self._node(path)
        try:
            (length,), (chunk,), (shard,) = array.shape, array.chunks, array.shards
            grid = Grid(length, chunk, shard)
            (sharding,) = array.metadata.to_dict()["codecs"]
            dtype, is_delta = stored_elements(array.dtype, sharding["configuration"]["codecs"])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise store_damaged(f"{path}/zarr.json", str(error)) from error
        check_length(path, length, self.n_obs)
        return ShardedArray(self._reader_of(path), path, dtype, grid, is_delta=is_delta)

    def open_strings(self, path: str) -> StringArray:
        """Open an array of strings, such as ``"obs/_index"``."""
        array = self._node(path)
        if getattr(array, "ndim", 0) != 1 or array.shards is None:
            raise contradiction(path, "expected an array of one dimension in shards")
        check_length(path, array.shape[0], self.n_obs)
        return StringArray(self._reader_of(path), array, path)

    def _reader_of(self, path: str) -> ByteReader:
        """Return the reader of an array's files; those of obs columns may be replaced while the store is open."""
        if not isinstance(self.reader, CheckedReader) or not path.startswith("obs/") or path.startswith(f"{TABLES}/"):
            return self.reader
        return CheckedReader(self.reader.reader, self.attrs, self._root_identity, "/".join(path.split("/")[:2]))

    def read_array(self, path: str) -> NDArray[Any]:
        """Read all of a numeric array."""
        array = self.open_array(path)
        return array.read(0, len(array))

    def read_strings(self, path: str) -> NDArray[Any]:
        """Read all of an array of strings, as an object array."""
        array = self.open_strings(path)
        return array.read(0, len(array))

    def read_categories(self, path: str) -> NDArray[Any]:
        """Read the categories of a categorical column: strings, or numbers."""
        categories = f"{path}/categories"
        is_text = self.encoding(categories) == "string-array"
        return self.read_strings(categories) if is_text else self.read_array(categories)

    def n_categories(self, path: str) -> int:
        """Return the number of categories of a categorical column."""
        return int(self._node(f"{path}/categories").shape[0])

    def categorical(self, path: str, codes: NDArray[Any]) -> pd.Categorical:
        """Make a Categorical of codes of a categorical column."""
        categories = self.read_categories(path)
        try:
            return pd.Categorical.from_codes(
                check_codes(f"{path}/codes", codes, len(categories)), categories, ordered=self.is_ordered(path)
            )
        except ValueError as error:  # categories that are not unique
            raise contradiction(f"{path}/categories", str(error).rstrip(".")) from error

    def read_column(self, path: str) -> Any:
        """Read all of an obs or var column as pandas would hold it: an array, a Categorical or a nullable array."""
        encoding = self.encoding(path)
        if encoding == "categorical":
            return self.categorical(path, self.read_array(f"{path}/codes"))
        if encoding == "string-array":
            return self.read_strings(path)
        if encoding == "nullable-string-array":
            text = self.read_strings(f"{path}/values")
            text[self.read_array(f"{path}/mask")] = None
            return text
        if encoding.startswith("nullable-"):
            values, mask = self.read_array(f"{path}/values"), self.read_array(f"{path}/mask")
            array = pd.arrays.BooleanArray if encoding == "nullable-boolean" else pd.arrays.IntegerArray
            return array(values, mask)
        return self.read_array(path)
