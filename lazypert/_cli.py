"""The command ``lazypert``: demo, convert, info, verify."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazypert.errors import LazypertError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazypert.store.store import Store

_MAX_GROUPS = 20
_INTERRUPTED = 130  # what shells report for a process that Ctrl-C ended
_DEMO_COLUMNS = ("pert_col", "control_pert", "cell_type_col", "batch_col", "var_gene_col")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments; None takes those of the process.

    Returns
    -------
    Exit status: 0, or 1 after an error, which is printed in one piece on stderr; 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        With 2 for arguments that make no sense, with 0 for ``--help`` and ``--version``.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.run is _demo and options.h5ad is None:
        given = [name for name in _DEMO_COLUMNS if getattr(options, name) is not None]
        if given:
            parser.error(f"demo: --{given[0].replace('_', '-')} is about a file; give that file with --h5ad")
    _log_to_stderr()
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("lazypert: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (LazypertError, OSError) as error:
        print(f"lazypert: error: {error}", file=sys.stderr)
        return 1
    return status


def _log_to_stderr() -> None:
    """What the library has to say beside its results: that it resumes, or starts over."""
    log = logging.getLogger("lazypert")
    log.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("lazypert: %(message)s"))
    log.handlers, log.propagate = [handler], False


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="lazypert",
        description="A lazy out-of-core engine for perturbation screens: convert once, read what is needed.",
    )
    parser.add_argument("--version", action="version", version=f"lazypert {version('lazypert')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_convert(commands)
    info = commands.add_parser("info", help="say what a store holds")
    info.add_argument("store", metavar="STORE", help="a folder or a URL")
    info.set_defaults(run=_info)
    check = commands.add_parser("verify", help="read every byte of a store and compare it with the manifest")
    check.add_argument("store", metavar="STORE", help="a folder or a URL")
    check.set_defaults(run=_verify)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="run every component on a simulated screen, or on yours",
        description="Run every component on the simulated reference screen, or on an .h5ad, print the figures and draw "
        "three pictures.",
    )
    demo.add_argument("--out", type=Path, default=Path("lazypert-demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--h5ad", type=Path, metavar="FILE", help="a screen of yours; is not changed")
    demo.add_argument("--pert-col", metavar="COL", help="obs column of the perturbation; default: perturbation")
    demo.add_argument("--control-pert", metavar="LABEL", help="label of control cells; default: non-targeting")
    demo.add_argument("--cell-type-col", metavar="COL", help="obs column; default: cell_type, if there is one")
    demo.add_argument("--batch-col", metavar="COL", help="obs column; default: batch, if there is one")
    demo.add_argument("--var-gene-col", metavar="COL", help="var column of gene names; default: the var index")
    demo.add_argument("--seed", type=_natural, default=42, metavar="N", help="default: %(default)s")
    demo.set_defaults(run=_demo)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="make a store of one or several files",
        description="Make a lazypert store, which is also a valid AnnData Zarr store, of one or several files.",
    )
    convert.add_argument("source", metavar="SOURCE", nargs="+", type=Path)
    convert.add_argument("store", metavar="STORE", type=Path)
    convert.add_argument("--pert-col", metavar="COL", help="obs column of the perturbation")
    convert.add_argument("--control-pert", metavar="LABEL", help="label of control cells")
    convert.add_argument("--cell-type-col", metavar="COL", help="obs column of the cell type")
    convert.add_argument("--batch-col", metavar="COL", help="obs column of the batch")
    convert.add_argument("--layer", help="layer to become X")
    convert.add_argument("--order", choices=("grouped", "source"), default="grouped", help="default: %(default)s")
    convert.add_argument("--seed", type=_natural, default=0, metavar="N", help="of the shuffle; default: %(default)s")
    convert.add_argument("--memory-limit", default="1GiB", metavar="SIZE", help="default: %(default)s")
    convert.add_argument("--overwrite", action="store_true", help="replace an existing store")
    convert.add_argument(
        "--join", choices=("inner", "outer"), default="inner", help="genes of several files; default: %(default)s"
    )
    convert.set_defaults(run=_convert)


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a non-negative integer")
    return int(text)


def _demo(options: argparse.Namespace) -> int:
    from lazypert._demo import DemoConfig, run_demo

    columns = {name: getattr(options, name) for name in _DEMO_COLUMNS if getattr(options, name) is not None}
    run_demo(DemoConfig(out=options.out, h5ad=options.h5ad, seed=options.seed, **columns))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from lazypert.conversion.convert import convert
    from lazypert.store.store import Store

    start = time.perf_counter()
    path = convert(
        options.source,
        options.store,
        pert_col=options.pert_col,
        control_pert=options.control_pert,
        cell_type_col=options.cell_type_col,
        batch_col=options.batch_col,
        layer=options.layer,
        order=options.order,
        seed=options.seed,
        memory_limit=options.memory_limit,
        overwrite=options.overwrite,
        join=options.join,
    )
    _print_conversion(Store(path), time.perf_counter() - start)
    return 0


def _print_conversion(store: Store, seconds: float) -> None:
    from lazypert._demo import size_of
    from lazypert._internal.memory import format_bytes, peak_memory

    before, after = sum(made_from["size"] for made_from in store.attrs["sources"]), size_of(Path(store.path))
    _field("store", store.path)
    _field("cells", f"{store.n_obs:,}")
    _field("genes", f"{store.n_vars:,}")
    _field("nonzeros", f"{store.matrix().stats['nnz']:,}")
    _field("groups", f"{store.attrs['summary']['n_groups']:,}")
    _field("size", f"{format_bytes(before)} before, {format_bytes(after)} after")
    _field("time", f"{seconds:.1f} s")
    _field("memory", f"{format_bytes(peak_memory())} at the peak")
    _print_warnings(store)


def _info(options: argparse.Namespace) -> int:
    from lazypert._internal.memory import format_bytes
    from lazypert.store.store import Store

    store = Store(options.store)
    attrs, summary = store.attrs, store.attrs["summary"]
    _field("store", f"{store.path} (format version {attrs['format_version']})")
    _field("cells", f"{store.n_obs:,}" + (f" ({n:,} unlabelled)" if (n := summary["n_unlabelled"]) else ""))
    _field("genes", f"{store.n_vars:,}")
    counts = {"pert_col": "n_perturbations", "cell_type_col": "n_cell_types", "batch_col": "n_batches"}
    for role, value in store.roles.to_json().items():
        if value is not None:
            labels = f"{summary[counts[role]]:,} labels" if role in counts else ""
            labels = f"{summary['n_controls']:,} cells" if role == "control_pert" else labels
            _field(role, f"{value}" + (f" ({labels})" if labels else ""))
    seed = f", shuffled within groups with seed {attrs['seed']}" if attrs["order"] == "grouped" else ""
    _field("order", f"{attrs['order']}{seed}")
    for made_from in attrs["sources"]:
        _field("source", f"{made_from['file']} ({made_from['n_obs']:,} cells, {format_bytes(made_from['size'])})")
    for name in store.matrices:
        _field("matrix", _describe_matrix(store, name))
    for name, array in store.obsm.items():
        _field("embedding", f"obsm/{name}  {array.dtype}  {array.shape[1]:,} wide")
    _field("obs", ", ".join(store.obs_columns))
    _print_warnings(store)
    _print_groups(store)
    return 0


def _describe_matrix(store: Store, name: str) -> str:
    matrix = store.open_matrix(name)
    facts, n_values = matrix.stats, max(1, matrix.shape[0] * matrix.shape[1])
    kind = "counts" if matrix.is_counts else "whole numbers" if facts["integral"] else "real numbers"
    return (
        f"{name}  {matrix.dtype}  {facts['nnz']:,} nonzeros ({facts['nnz'] / n_values:.1%})  "
        f"{kind} from {facts['minimum']:g} to {facts['maximum']:g}"
    )


def _print_groups(store: Store) -> None:
    if not store.roles.has_columns:
        return
    table = store.groups.table()
    sizes = table["n_cells"]
    _field("groups", f"{len(table):,}, of {sizes.min():,} to {sizes.max():,} cells" if len(table) else "0")
    shown = table.head(_MAX_GROUPS)
    if not len(shown):
        return
    names = [max(4, *(len(str(label)) for label in shown[axis])) for axis in ("cell_type", "perturbation")]
    widths = [max(names[0], len("cell type")), max(names[1], len("perturbation"))]
    print(f"\n  {'cell type':<{widths[0]}}  {'perturbation':<{widths[1]}}  {'cells':>9}  {'batches':>7}")
    for line in shown.itertuples():
        control = "  control" if line.is_control else ""
        print(
            f"  {line.cell_type:<{widths[0]}}  {line.perturbation:<{widths[1]}}  {line.n_cells:>9,}  "
            f"{line.n_batches:>7,}{control}"
        )
    if len(table) > len(shown):
        print(f"  ... and {len(table) - len(shown):,} more")


def _verify(options: argparse.Namespace) -> int:
    from lazypert.store.verify import verify

    print(f"ok: {verify(options.store):,} files, every byte as it was written")
    return 0


def _print_warnings(store: Store) -> None:
    for warning in store.attrs["warnings"]:
        _field("warning", warning)


def _field(name: str, value: object) -> None:
    print(f"{name:<14} {value}")
