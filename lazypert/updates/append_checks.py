"""Whether the cells of further files fit a store: the same genes, matrices and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from lazypert.conversion.plan import DATASET
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.store.store import Store

GeneRule = Literal["same", "store"]
"""Which genes new files must have: those of the store, or any, of which those of the store are taken."""

_SHOWN = 3


def require_fitting(old: Store, new: Store, genes: GeneRule) -> NDArray[np.int32] | None:
    """Check that new cells can be appended.

    Returns
    -------
    For each gene of the new files its number in the store, -1 to leave it out; None if all are the same.

    Raises
    ------
    ConfigError
        If they cannot.
    """
    for kind, has, needs in (
        ("matrices", set(new.matrices), set(old.matrices)),
        ("embeddings", set(new.obsm), set(old.obsm)),
        ("obsm tables", set(new.obsm_frames), set(old.obsm_frames)),
    ):
        if missing := needs - has:
            raise ConfigError(
                f"more: got files without {_listed(missing)}, expected the {kind} of the store ({_listed(needs)}). Add "
                "them to the files. Nothing was changed."
            )
    for name, embedding in old.obsm.items():
        found = new.obsm[name]
        if found.shape[1] != embedding.shape[1] or not np.can_cast(found.dtype, embedding.dtype):
            raise ConfigError(
                f"more: got obsm/{name} of {found.shape[1]:,} columns of {found.dtype}, expected "
                f"{embedding.shape[1]:,} of {embedding.dtype}. Compute it as for the store. Nothing was changed."
            )
    for name, columns in old.obsm_frames.items():
        if set(columns) != set(new.obsm_frames[name]):
            raise ConfigError(f"more: got obsm/{name} with other columns than the store. Nothing was changed.")
    for name in old.matrices:
        widths = [store.attrs["matrices"][name]["n_cols"] for store in (old, new)]
        if name.startswith("obsm/") and widths[0] != widths[1]:
            raise ConfigError(
                f"more: got {name} of {widths[1]:,} columns, expected {widths[0]:,}. Nothing was changed."
            )
    if "raw/X" in old.matrices and not old.raw_var.index.equals(new.raw_var.index):
        raise ConfigError("more: got raw with other genes than that of the store. Nothing was changed.")
    return _new_columns_of_genes(old.var.index, new.var.index, genes)


def _new_columns_of_genes(old: pd.Index, new: pd.Index, rule: GeneRule) -> NDArray[np.int32] | None:
    if old.equals(new):
        return None
    for names, whose in ((old, "the store"), (new, "more")):
        if not names.is_unique:
            repeated = names[names.duplicated()][0]
            raise ConfigError(
                f"more: genes are aligned by name, but {whose} has {str(repeated)!r} more than once. Make the names "
                "unique (adata.var_names_make_unique()). Nothing was changed."
            )
    missing, further = old.difference(new), new.difference(old)
    if len(missing) == len(old):
        raise ConfigError("more: got no gene of the store. Use the same identifiers as the store. Nothing was changed.")
    if rule == "same" and len(missing) + len(further):
        raise ConfigError(
            f"more: got genes that differ from those of the store: {len(missing):,} are missing ({_listed(missing)}), "
            f"and {len(further):,} are not in the store ({_listed(further)}). Pass genes='store' to leave out genes "
            "that the store lacks and take missing ones as zeros. Nothing was changed."
        )
    return old.get_indexer(new).astype(np.int32)


def new_columns(old: Store, new: Store) -> dict[str, str | None]:
    """For each obs column of the result, except that of the dataset, its name in the new store; None if missing."""
    own = old.roles.dataset_col
    of_new = {name: name for name in new.obs_columns if name != new.roles.dataset_col}
    if DATASET in of_new:  # as if all files had been converted together
        of_new[f"{DATASET}_in_file"] = of_new.pop(DATASET)
    names = [name for name in old.obs_columns if name != own]
    return {name: of_new.get(name) for name in dict.fromkeys([*names, *of_new])}


def _listed(names: Iterable[str]) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "") if shown else "none"
