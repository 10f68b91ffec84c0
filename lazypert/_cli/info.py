"""The command info: what a store holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert._cli.commands import storage_options_of
from lazypert._cli.output import print_field, print_warnings, printable_line

if TYPE_CHECKING:
    import argparse

    from lazypert.store.store import Store

_MAX_GROUPS = 20


def print_info(options: argparse.Namespace) -> None:
    """Print the size, roles, sources, matrices, columns and groups of a store."""
    from lazypert.store.store import Store

    store = Store(options.store, storage_options_of("--storage-option", options.storage_option))
    _print_shape_and_roles(store)
    _print_origin(store)
    if store.compression != "fast":
        print_field("compression", store.compression)
    for name in store.matrices:
        print_field("matrix", _describe_matrix(store, name))
    for name, array in store.obsm.items():
        print_field("embedding", f"obsm/{name}  {array.dtype}  {array.shape[1]:,} dimensions")
    print_field("obs", ", ".join(store.obs_columns))
    print_warnings(store)
    _print_groups(store)


def _print_shape_and_roles(store: Store) -> None:
    attrs, summary = store.attrs, store.attrs["summary"]
    print_field("store", f"{store.path} (format version {attrs['format_version']})")
    print_field("cells", f"{store.n_obs:,}" + (f" ({n:,} unlabelled)" if (n := summary["n_unlabelled"]) else ""))
    print_field("genes", f"{store.n_vars:,}")
    counts = {"pert_col": "n_perturbations", "cell_type_col": "n_cell_types", "batch_col": "n_batches"}
    for role, value in store.roles.to_json().items():
        if value is not None:
            labels = f"{summary[counts[role]]:,} labels" if role in counts else ""
            labels = f"{summary['n_controls']:,} cells" if role == "control_pert" else labels
            labels = f"{summary['n_conditions']:,} conditions" if role == "covariates" else labels
            text = ", ".join(value) if isinstance(value, list) else str(value)
            print_field(role, text + (f" ({labels})" if labels else ""))


def _print_origin(store: Store) -> None:
    from lazypert._internal.memory import format_bytes

    attrs = store.attrs
    is_fair = attrs["order"] == "grouped" and store.format_version >= 3
    print_field("order", f"{attrs['order']}{', in random order within groups' if is_fair else ''}")
    for source in attrs["sources"]:
        size = "in memory" if source["size"] is None else format_bytes(source["size"])
        print_field("source", f"{source['file']} ({source['n_obs']:,} cells, {size})")


def _describe_matrix(store: Store, name: str) -> str:
    matrix = store.open_matrix(name)
    stats, n_values = matrix.stats, max(1, matrix.shape[0] * matrix.shape[1])
    kind = "counts" if matrix.is_counts else "integers" if stats["integral"] else "real numbers"
    return (
        f"{name}  {matrix.dtype}  {stats['nnz']:,} nonzeros ({stats['nnz'] / n_values:.1%})  "
        f"{kind} from {stats['minimum']:g} to {stats['maximum']:g}"
    )


def _print_groups(store: Store) -> None:
    if not store.roles.has_columns:
        return
    table = store.groups.table()
    sizes = table["n_cells"]
    span = f"{sizes.min():,}" if sizes.nunique() == 1 else f"{sizes.min():,} to {sizes.max():,}"
    print_field("groups", f"{len(table):,}, each of {span} cells" if len(table) else "0")
    shown = table.head(_MAX_GROUPS)
    if not len(shown):
        return
    heads = ["cell type", "perturbation", *store.roles.covariates]
    columns = [[head, *map(printable_line, shown.iloc[:, place])] for place, head in enumerate(heads)]
    widths = [max(map(len, column)) for column in columns]
    padded = [[text.ljust(n) for text in column] for column, n in zip(columns, widths, strict=True)]
    lines = ["  ".join(line) for line in zip(*padded, strict=True)]
    print(f"\n  {lines[0]}  {'cells':>9}  {'batches':>7}")
    numbers = zip(shown["n_cells"], shown["n_batches"], shown["is_control"], strict=True)
    for line, (n_cells, n_batches, is_control) in zip(lines[1:], numbers, strict=True):
        print(f"  {line}  {n_cells:>9,}  {n_batches:>7,}{'  control' if is_control else ''}")
    if len(table) > len(shown):
        print(f"  ... and {len(table) - len(shown):,} more")
