"""Arguments of the command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lazypert._cli import commands
from lazypert._cli.doctor import print_diagnosis
from lazypert._cli.info import print_info

if TYPE_CHECKING:
    from collections.abc import Sequence


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments; the result's ``run`` is the function that runs the command.

    Raises
    ------
    SystemExit
        For invalid arguments, ``--help`` and ``--version``.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.run is commands.demo and options.h5ad is None:
        given = [name for name in commands.DEMO_COLUMNS if getattr(options, name) is not None]
        if given:
            parser.error(f"demo: --{given[0].replace('_', '-')} describes a file; pass that file with --h5ad")
    return options


def _parser() -> argparse.ArgumentParser:
    import lazypert

    parser = argparse.ArgumentParser(
        prog="lazypert",
        description="A lazy out-of-core engine for perturbation screens: convert once, then read only what you need.",
    )
    parser.add_argument("--version", action="version", version=f"lazypert {lazypert.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(subparsers)
    _add_convert(subparsers)
    _add_append(subparsers)
    _add_add_obs(subparsers)
    info = subparsers.add_parser("info", help="describe a store")
    info.add_argument("store", metavar="STORE", help="a directory or a URL")
    _add_storage_options(info)
    info.set_defaults(run=print_info)
    verify = subparsers.add_parser("verify", help="read a store completely and compare it with its manifest")
    verify.add_argument("store", metavar="STORE", help="a directory or a URL")
    _add_storage_options(verify)
    verify.set_defaults(run=commands.verify)
    doctor = subparsers.add_parser("doctor", help="check the installation: versions, codecs, cache, optional packages")
    doctor.set_defaults(run=print_diagnosis)
    return parser


def _add_demo(subparsers: Any) -> None:
    demo = subparsers.add_parser(
        "demo",
        help="run every component on a simulated screen, or on your own data",
        description="Run every component on the simulated reference screen, or on an .h5ad file; print a report and "
        "draw three figures.",
    )
    demo.add_argument("--out", default="lazypert-demo", metavar="DIR", help="default: %(default)s")
    demo.add_argument("--h5ad", metavar="FILE", help="your own screen; it is not modified")
    demo.add_argument("--pert-col", metavar="COL", help="obs column of the perturbation; default: perturbation")
    demo.add_argument("--control-pert", metavar="LABEL", help="label of control cells; default: non-targeting")
    demo.add_argument("--cell-type-col", metavar="COL", help="obs column; default: cell_type, if it exists")
    demo.add_argument("--batch-col", metavar="COL", help="obs column; default: batch, if it exists")
    demo.add_argument("--var-gene-col", metavar="COL", help="var column of gene names; default: the var index")
    demo.add_argument("--seed", type=_natural_number, default=42, metavar="N", help="default: %(default)s")
    demo.set_defaults(run=commands.demo)


def _add_convert(subparsers: Any) -> None:
    convert = subparsers.add_parser(
        "convert",
        help="convert one or more files into a store",
        description="Convert one or more files into a lazypert store, which is also a valid AnnData Zarr store.",
    )
    convert.add_argument("source", metavar="SOURCE", nargs="+", help="a file or a URL")
    convert.add_argument("store", metavar="STORE", help="a directory or a URL")
    convert.add_argument("--pert-col", metavar="COL", help="obs column of the perturbation")
    convert.add_argument(
        "--control-pert", metavar="LABEL", action="append", help="label of control cells; repeat it for several labels"
    )
    convert.add_argument("--control-col", metavar="COL", help="boolean obs column that marks the controls instead")
    convert.add_argument("--separator", metavar="TEXT", help="text between the parts of combinations, such as +")
    convert.add_argument(
        "--rename-perturbations",
        metavar="LABEL=NAME",
        action="append",
        help="merge spellings: cells labelled LABEL get the label NAME; repeat it for several. "
        "'strip' removes blanks around every label",
    )
    convert.add_argument("--cell-type-col", metavar="COL", help="obs column of the cell type")
    convert.add_argument("--batch-col", metavar="COL", help="obs column of the batch")
    convert.add_argument(
        "--covariate",
        metavar="COL",
        action="append",
        default=[],
        help="obs column that divides perturbations into conditions, such as dose; repeat it for several",
    )
    convert.add_argument("--layer", help="layer to use as X, or raw")
    convert.add_argument("--order", choices=("grouped", "source"), default="grouped", help="default: %(default)s")
    convert.add_argument(
        "--seed", type=_natural_number, default=0, metavar="N", help="has no effect; kept for existing scripts"
    )
    convert.add_argument("--memory-limit", default="1GiB", metavar="SIZE", help="default: %(default)s")
    convert.add_argument("--overwrite", action="store_true", help="replace an existing store")
    convert.add_argument(
        "--join", choices=("inner", "outer"), default="inner", help="how to combine genes; default: %(default)s"
    )
    convert.add_argument(
        "--obs", metavar="FILE", action="append", help="table of obs columns, such as guide calls, joined by barcode"
    )
    _add_storage_options(convert)
    _add_source_storage_options(convert)
    _add_work_dir(convert)
    convert.add_argument(
        "--compression",
        choices=("fast", "compact"),
        help="compact takes about a third less space and loads more slowly; default: fast",
    )
    convert.set_defaults(run=commands.convert)


def _add_storage_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--storage-option",
        metavar="KEY=VALUE",
        action="append",
        help="option of the storage of URLs, such as endpoint_url=https://...; repeat it for several. Credentials are "
        "better kept in environment variables",
    )


def _add_source_storage_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--source-storage-option",
        metavar="KEY=VALUE",
        action="append",
        help="the same for the sources, if they are on another storage",
    )


def _add_work_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument("--work-dir", metavar="DIR", help="local directory of temporary files, if the store is a URL")


def _add_append(subparsers: Any) -> None:
    append = subparsers.add_parser(
        "append",
        help="append the cells of further files to a store",
        description="Append the cells of further files to a store. They are converted with the options of the store.",
    )
    append.add_argument("store", metavar="STORE", help="a directory or a URL")
    append.add_argument("source", metavar="SOURCE", nargs="+", help="a file or a URL")
    append.add_argument("--dataset", metavar="NAME", help="name of the new cells in the obs column dataset")
    append.add_argument(
        "--genes",
        choices=("same", "store"),
        default="same",
        help="store: leave out genes that the store lacks, and take missing ones as zeros; default: %(default)s",
    )
    append.add_argument("--memory-limit", default="1GiB", metavar="SIZE", help="default: %(default)s")
    append.add_argument(
        "--obs", metavar="FILE", action="append", help="table of obs columns, such as guide calls, joined by barcode"
    )
    _add_storage_options(append)
    _add_source_storage_options(append)
    _add_work_dir(append)
    append.set_defaults(run=commands.append)


def _add_add_obs(subparsers: Any) -> None:
    add_obs = subparsers.add_parser(
        "add-obs",
        help="add obs columns to a store",
        description="Add the columns of a CSV, TSV or Parquet file to a store; rows are matched by cell name.",
    )
    add_obs.add_argument("store", metavar="STORE", help="a directory or a URL")
    add_obs.add_argument("table", metavar="TABLE", help="a .csv, .tsv or .parquet file with a row per cell")
    add_obs.add_argument("--column", metavar="COL", action="append", help="add only this column; may be repeated")
    add_obs.add_argument("--overwrite", action="store_true", help="replace columns of the same name")
    add_obs.add_argument("--ignore-unknown", action="store_true", help="leave out rows of cells that the store lacks")
    _add_storage_options(add_obs)
    _add_work_dir(add_obs)
    add_obs.set_defaults(run=commands.add_obs)


def _natural_number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a non-negative integer")
    return int(text)
