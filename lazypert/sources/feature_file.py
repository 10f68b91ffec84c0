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


def read_feature_table(path: str | Path, labels: NDArray[np.str_], control_pert: str) -> NDArray[np.float32]:
    """Read one feature vector per perturbation.

    Parameters
    ----------
    path
        ``.csv`` or ``.tsv`` file with a header and perturbation names in the first column, or ``.npz`` file
        with one vector per name.
    labels
        (n_perturbations,) perturbation names.
    control_pert
        The control label. If the file lacks it, its features are zeros.

    Returns
    -------
    (n_perturbations, width) float32, in the order of `labels`.

    Raises
    ------
    ConfigError
        When the file is missing, has an unsupported format, or is not a table of numbers.
    LabelNotFoundError
        When perturbations have no features; the error names them.
    """
    path = local_path("perturbation_features_file", path, "Copy the file to this machine first.")
    table = _read_table(path)
    missing = [str(name) for name in labels if name not in table.index and name != control_pert]
    if missing:
        raise LabelNotFoundError(
            f"perturbation_features_file: {str(path)!r} has no features for {len(missing)} of {len(labels)} "
            f"perturbations: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Add them to the file."
        )
    try:
        features = table.reindex(labels).to_numpy(dtype=np.float32, copy=True)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"perturbation_features_file: {str(path)!r} is not a table of numbers ({error}).") from error
    if control_pert not in table.index:
        features[labels == control_pert] = 0.0
    if np.isnan(features).any():
        raise ConfigError(
            f"perturbation_features_file: {str(path)!r} has missing values among the features of "
            f"{str(labels[np.isnan(features).any(axis=1)][0])!r}. Fill them in."
        )
    return features


def _read_table(path: Path) -> pd.DataFrame:
    """Read a file as a table, indexed by perturbation name."""
    if not path.is_file():
        raise ConfigError(f"perturbation_features_file: there is no file {str(path)!r}.")
    if path.suffix in (".csv", ".tsv"):
        table = pd.read_csv(path, index_col=0, sep="," if path.suffix == ".csv" else "\t")
        table.index = table.index.astype(str)
        return table
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
