"""Perturbation features from a file, matched by name. Pickles are never loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lazypert._internal.paths import local_path
from lazypert.errors import ConfigError, LabelNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def read_feature_table(
    path: str | Path, labels: NDArray[np.str_], is_control: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Read one feature vector per perturbation.

    Parameters
    ----------
    path
        ``.csv`` or ``.tsv`` file with a header and perturbation names in the first column, or ``.npz`` file
        with one vector per name. Names are compared as text; ``NA``, ``null`` and the like are names.
    labels
        (n_perturbations,) perturbation names.
    is_control
        (n_perturbations,) bool: which names mark controls. Those that the file lacks get zeros.

    Returns
    -------
    (n_perturbations, width) float32, in the order of `labels`.

    Raises
    ------
    ConfigError
        When the file is missing, has an unsupported format, names a perturbation twice, or is not a table of
        numbers; the error names the perturbation.
    LabelNotFoundError
        When perturbations have no features; the error names them.
    """
    path = local_path("perturbation_features_file", path, "Copy the file to this machine first.")
    table = _read_table(path)
    repeated = table.index[table.index.duplicated()]
    if len(repeated):
        raise ConfigError(
            f"perturbation_features_file: got {str(repeated[0])!r} {(table.index == repeated[0]).sum()} times in "
            f"{str(path)!r}, expected each perturbation once. Keep one line of it."
        )
    is_known = np.isin(labels, table.index.to_numpy(dtype=np.str_))
    missing = labels[~is_known & ~is_control].tolist()
    if missing:
        raise LabelNotFoundError(
            f"perturbation_features_file: {str(path)!r} has no features for {len(missing)} of {len(labels)} "
            f"perturbations: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Add them to the file."
        )
    try:
        features = table.reindex(labels).to_numpy(dtype=np.float32, copy=True)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"perturbation_features_file: {str(path)!r} is not a table of numbers ({error}).") from error
    features[~is_known] = 0.0
    is_bad = ~np.isfinite(features)
    if is_bad.any():
        row, column = np.argwhere(is_bad)[0]
        raise ConfigError(
            f"perturbation_features_file: got {features[row, column]:g} in column {str(table.columns[column])!r} of "
            f"{str(labels[row])!r} in {str(path)!r}, where {is_bad.any(axis=1).sum():,} perturbations have missing or "
            "infinite values, expected finite float32 numbers. Fill them in."
        )
    return features


def _read_text_table(path: Path, separator: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep=separator, index_col=0)
        # Read on their own, names stay as they are written: NA and null are no missing values, 007 is not 7.
        names = pd.read_csv(path, sep=separator, usecols=[0], header=None, dtype=str, na_filter=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ConfigError(f"perturbation_features_file: cannot read {str(path)!r} as a table: {error}") from error
    if table.index.nlevels > 1 or len(names) != len(table) + 1:
        raise ConfigError(
            f"perturbation_features_file: got lines in {str(path)!r} that do not match its header, expected a name and "
            f"{len(table.columns)} numbers in each. Correct the header, or the lines."
        )
    return table.set_axis(names.iloc[1:, 0].to_numpy(dtype=object), axis=0)


def _read_table(path: Path) -> pd.DataFrame:
    """Read a file as a table, indexed by perturbation name."""
    if not path.is_file():
        raise ConfigError(f"perturbation_features_file: there is no file {str(path)!r}.")
    if path.suffix in (".csv", ".tsv"):
        return _read_text_table(path, "," if path.suffix == ".csv" else "\t")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            try:
                return pd.DataFrame({name: np.ravel(arrays[name]) for name in arrays.files}).T
            except ValueError as error:  # pickled arrays, or vectors of different lengths
                raise ConfigError(f"perturbation_features_file: cannot use {str(path)!r}: {error}") from error
    raise ConfigError(
        f"perturbation_features_file: got {path.name!r}, expected .csv, .tsv or .npz. Torch's .pt files contain "
        "pickled code, which is never loaded. Save the vectors with numpy.savez(path, **{name: vector})."
    )
