"""Metadata of a batch's cells: one-hot vectors and features of labels, cell names, obs columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.loading.config import Extra
    from lazypert.sources.base import PerturbationSource


_CODE_FIELDS = {"perturbation": "pert_code", "cell_type": "cell_type_code", "batch": "batch_code"}
"""Field of a batch that holds the codes of each axis."""


class CellMetadata:
    """Reads metadata in dtypes and shapes that JAX accepts.

    Parameters
    ----------
    source
        The source of the cells.
    extras, obs, text_width
        As in `LoaderConfig`.

    Attributes
    ----------
    labels
        Sorted labels of each categorical obs column.
    axis_vectors
        Axis and (n_labels, width) vectors of each field of a batch that holds vectors of labels.

    Raises
    ------
    ColumnNotFoundError
        If an obs column does not exist.
    """

    def __init__(
        self, source: PerturbationSource, extras: Sequence[Extra], obs: Sequence[str], *, text_width: int
    ) -> None:
        self._source, self._extras, self._obs, self._text_width = source, extras, obs, text_width
        self.labels = {column: labels for column in obs if (labels := source.obs_labels(column)) is not None}
        self._text_columns = {
            column
            for column in obs
            if any("string" in store.encoding(f"obs/{store.require_obs(column)}") for store in source.stores)
        }
        self.axis_vectors: dict[str, tuple[str, NDArray[np.float32]]] = {}
        if "cell_type_onehot" in extras:
            self.axis_vectors["cell_type_onehot"] = "cell_type", self._one_hot("cell_type")
        if "batch_onehot" in extras:
            self.axis_vectors["batch_onehot"] = "batch", self._one_hot("batch")
        if "pert_emb" in extras:
            self.axis_vectors["pert_emb"] = "perturbation", source.perturbation_features

    def _one_hot(self, axis: str) -> NDArray[np.float32]:
        return np.eye(len(self._source.groups.labels[axis]), dtype=np.float32)

    def read(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Read cell names (as ``"barcode"``) and obs columns of cells; axis 0 is the cell."""
        columns = {column: self._column(column, self._source.read_obs(column, rows)) for column in self._obs}
        if "barcode" in self._extras:
            columns["barcode"] = self._encode("barcode", self._source.obs_names(rows))
        return columns

    def label_vectors(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """(n, width) one-hot vectors and features of cells from their codes; zeros for a missing label."""
        out = {}
        for field, (axis, vectors) in self.axis_vectors.items():
            code = columns[_CODE_FIELDS[axis]]
            zeros = np.zeros((len(code), vectors.shape[1]), np.float32)
            out[field] = np.where(code[:, None] >= 0, vectors[code], zeros) if len(vectors) else zeros
        return out

    def _column(self, column: str, values: NDArray[Any]) -> NDArray[Any]:
        if column in self.labels:
            return pd.Index(self.labels[column]).get_indexer(values).astype(np.int32)
        if values.dtype.kind in "biuf":
            return values
        if column in self._text_columns:
            return self._encode(column, values)
        return np.array([np.nan if value is None else value for value in values], dtype=np.float32)

    def _encode(self, name: str, values: NDArray[Any]) -> NDArray[np.uint8]:
        """(n, text_width) UTF-8, padded with zeros."""
        encoded = [b"" if value is None else str(value).encode() for value in values]
        longest = max(encoded, key=len, default=b"")
        if len(longest) > self._text_width:
            raise ConfigError(
                f"text_width: got {self._text_width}, expected at least {len(longest)}: {name} has a string of "
                f"{len(longest)} bytes ({longest.decode()[:40]!r}...), and shapes are fixed in advance. "
                f"Pass text_width={len(longest)} or more."
            )
        table = np.zeros((len(encoded), self._text_width), np.uint8)
        for row, text in zip(table, encoded, strict=True):
            row[: len(text)] = np.frombuffer(text, np.uint8)
        return table
