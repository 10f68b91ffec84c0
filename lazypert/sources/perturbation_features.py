"""Perturbation features from a file, matched to perturbations by name. No pickle is ever loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lazypert.errors import ConfigError, LabelNotFoundError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_feature_table(path: str | Path, labels: NDArray[np.str_], control_pert: str) -> NDArray[np.float32]:
    """Features of perturbations.

    Parameters
    ----------
    path
        ``.csv`` or ``.tsv`` with perturbation names in the first column and a header, or ``.npz``
        with one vector a name.
    labels
        (n_perturbations,) names wanted.
    control_pert
        The control label; where the file lacks it, its features are zero.

    Returns
    -------
    (n_perturbations, width) float32.

    Raises
    ------
    ConfigError
        When the file is missing, of another kind, or not a table of numbers.
    LabelNotFoundError
        When perturbations have no features; they are named.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"perturbation_features_file: there is no file {str(path)!r}.")
    if path.suffix in (".csv", ".tsv"):
        frame = pd.read_csv(path, index_col=0, sep="," if path.suffix == ".csv" else "\t")
        frame.index = frame.index.astype(str)
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            try:
                frame = pd.DataFrame({name: np.ravel(arrays[name]) for name in arrays.files}).T
            except ValueError as error:  # pickled arrays, or vectors of different length
                raise ConfigError(f"perturbation_features_file: cannot use {str(path)!r}: {error}") from error
    else:
        raise ConfigError(
            f"perturbation_features_file: got {path.name!r}, expected .csv, .tsv or .npz. Torch's .pt files hold "
            "pickled code, which is never loaded: save them with numpy.savez(path, **{name: vector})."
        )
    missing = [str(name) for name in labels if name not in frame.index and name != control_pert]
    if missing:
        raise LabelNotFoundError(
            f"{len(missing)} of {len(labels)} perturbations have no features in {str(path)!r}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
        )
    try:
        features = frame.reindex(labels).to_numpy(dtype=np.float32, copy=True)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"perturbation_features_file: {str(path)!r} is not a table of numbers ({error}).") from error
    if control_pert not in frame.index:
        features[labels == control_pert] = 0.0
    if np.isnan(features).any():
        raise ConfigError(
            f"perturbation_features_file: {str(path)!r} has no number for some features of "
            f"{str(labels[np.isnan(features).any(axis=1)][0])!r}. Fill them in."
        )
    return features
