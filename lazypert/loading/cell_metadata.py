"""What a batch says of its cells beside their features: embeddings of labels, names, obs columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert._internal.validation import require_choice, require_integer, require_names
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.sources.base import PerturbationSource

EXTRAS = ("pert_emb", "cell_type_onehot", "batch_onehot", "barcode")
"""Fields of a batch that are there when asked for."""


class CellMetadata:
    """Reads what was asked for, in dtypes and shapes that JAX takes.

    Parameters
    ----------
    source
        The cells.
    extras
        Some of `EXTRAS`.
    obs
        obs columns.
    text_width
        Bytes for each text.
    """

    def __init__(
        self, source: PerturbationSource, extras: Sequence[str], obs: Sequence[str], *, text_width: int
    ) -> None:
        for name in require_names("extras", extras):
            require_choice("extras", name, EXTRAS)
        self._source, self._extras = source, tuple(extras)
        self._text_width = require_integer("text_width", text_width, 1)
        self._obs = tuple(dict.fromkeys(require_names("obs", obs)))
        self.labels = {column: labels for column in self._obs if (labels := source.obs_labels(column)) is not None}
        self._texts = {
            column
            for column in self._obs
            if any("string" in store.encoding(f"obs/{store.require_obs(column)}") for store in source.stores)
        }
        self.of_axes: dict[str, tuple[str, NDArray[np.float32]]] = {}
        for field, axis in (("cell_type_onehot", "cell_type"), ("batch_onehot", "batch")):
            if field in extras:
                self.of_axes[field] = axis, np.eye(len(source.groups.labels[axis]), dtype=np.float32)
        if "pert_emb" in extras:
            self.of_axes["pert_emb"] = "perturbation", source.perturbation_features

    def read(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Names (as ``"barcode"``) and obs columns of cells, each with the cells first."""
        found = {column: self._column(column, self._source.read_obs(column, rows)) for column in self._obs}
        if "barcode" in self._extras:
            found["barcode"] = self._text("barcode", self._source.obs_names(rows))
        return found

    def of_runs(self, run: NDArray[np.integer]) -> dict[str, NDArray[np.float32]]:
        """One-hot vectors and embeddings of cells by their runs; zeros for a missing label."""
        codes = self._source.groups.codes
        out = {}
        for field, (axis, table) in self.of_axes.items():
            code = codes[axis][run]
            none = np.zeros((len(code), table.shape[1]), np.float32)
            out[field] = np.where(code[:, None] >= 0, table[code], none) if len(table) else none
        return out

    def _column(self, column: str, values: NDArray[Any]) -> NDArray[Any]:
        if column in self.labels:
            return pd.Index(self.labels[column]).get_indexer(values).astype(np.int32)
        if values.dtype.kind in "biuf":
            return values
        if column in self._texts:
            return self._text(column, values)
        return np.array([np.nan if value is None else value for value in values], dtype=np.float32)

    def _text(self, name: str, values: NDArray[Any]) -> NDArray[np.uint8]:
        encoded = [b"" if value is None else str(value).encode() for value in values]
        longest = max(encoded, key=len, default=b"")
        if len(longest) > self._text_width:
            raise ConfigError(
                f"text_width: got {self._text_width}, and {name} has a text of {len(longest)} bytes "
                f"({longest.decode()[:40]!r}...). Pass text_width={len(longest)} or more: shapes are fixed beforehand."
            )
        table = np.zeros((len(encoded), self._text_width), np.uint8)
        for line, text in zip(table, encoded, strict=True):
            line[: len(text)] = np.frombuffer(text, np.uint8)
        return table
