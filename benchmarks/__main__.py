"""``python -m benchmarks convert --help``, and likewise for ``load``, ``fairness``, ``remote`` and ``scale``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import convert, fairness, load, remote, scale
from benchmarks.load_summary import CACHES
from benchmarks.loaders import RIVALS as LOADERS
from benchmarks.loaders.annbatch import Setting
from benchmarks.loaders.base import ENDPOINTS
from benchmarks.rivals import RIVALS
from benchmarks.scale_operations import OPERATIONS
from benchmarks.summary import PLAIN
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    # Name of an option, its parser, and its help text.
    Arguments = Iterable[tuple[str, Callable[[str], Any], str]]


def _listed(known: tuple[str, ...]):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, expected names among {', '.join(known)}")
        return names

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive integer")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_positive(part.strip().replace("_", "")) for part in text.split(",")))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of seconds, 0 or more")
    return value


def _factor(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive number")
    return value


def _settings(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        try:
            Setting.parse(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return names


def _interpreter(text: str) -> tuple[str, str]:
    package, separator, path = text.partition("=")
    known = dict.fromkeys(rival.package for rival in LOADERS.values())
    if not separator or package not in known:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected PACKAGE=PATH with a package among {', '.join(known)}")
    return package, path


def _add(command: argparse.ArgumentParser, options: type, arguments: Arguments) -> None:
    default = {field.name: field.default for field in fields(options)}
    for name, kind, text in arguments:
        value = default[name]
        default_text = (
            "" if value is None else f" (default: {','.join(map(str, value)) if isinstance(value, tuple) else value})"
        )
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"{text}{default_text}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="lazypert against its rivals.")
    commands = parser.add_subparsers(dest="benchmark", required=True)
    size: Arguments = (
        ("cells", _positive, "number of cells"),
        ("genes", _positive, "number of genes"),
        ("nnz", float, "mean number of nonzeros per cell"),
    )
    work = ("work", Path, "folder for screens (kept and reused), stores and the report")
    command = commands.add_parser("convert", help="convert a screen: seconds, peak memory, bytes")
    _add(
        command,
        convert.Options,
        (
            *size,
            ("factor", _positive, "how many times more cells the larger screen of --scaling has"),
            ("runs", _positive, "rounds, in each of which every rival converts every screen once"),
            ("rivals", _listed(tuple(RIVALS)), "rivals, separated by commas"),
            ("screens", _listed((PLAIN, convert.GZIP)), "screens, separated by commas"),
            ("memory_limit", str, "memory limit for lazypert"),
            work,
        ),
    )
    command.add_argument("--scaling", action="store_true", help="also convert --factor times the cells with lazypert")
    command = commands.add_parser("load", help="load a screen in batches: cells per second, memory, bytes")
    _add(
        command,
        load.Options,
        (
            *size,
            ("cell_types", _positive, "number of cell types"),
            ("perturbations", _positive, "number of perturbations, including the control and 'unassigned'"),
            ("small_cells", _positive, "number of cells for rivals that hold the whole matrix dense"),
            ("sentence_size", _positive, "cells of one group side by side"),
            ("sentences_per_batch", _positive, "sentences per batch"),
            ("runs", _positive, "rounds, in each of which every rival runs once; slow rivals run in the first only"),
            ("seconds", _seconds, "seconds to measure after the first batch"),
            ("slow_seconds", _seconds, "the same for slow rivals"),
            ("sweep_seconds", _seconds, "the same for each trial of annbatch's settings"),
            ("rivals", _listed(tuple(LOADERS)), "rivals, separated by commas"),
            ("endpoints", _listed(ENDPOINTS), "forms of the final batch, separated by commas"),
            ("caches", _listed(CACHES), "states of the page cache, separated by commas"),
            ("sweep", _settings, "settings of annbatch to try, separated by commas"),
            ("threads", _positive, "threads of lazypert and of the limit (default: lazypert's own choice)"),
            work,
        ),
    )
    command.add_argument(
        "--no-overlap", dest="overlap", action="store_false", help="skip measuring the overlap with a model step"
    )
    _add_python(command)
    command = commands.add_parser("fairness", help="null screens: whether batches are fair samples")
    _add(
        command,
        fairness.Options,
        (
            ("rows", _positive, "measure only the first rows of the table of null screens (default: all)"),
            ("scale", _factor, "multiply the sizes of all groups, for a trial"),
            ("epochs", _positive, "epochs over which neighbouring batches are averaged"),
            work,
        ),
    )
    _add_python(command)
    command = commands.add_parser("remote", help="read a store through a server: seconds, requests, bytes")
    _add(command, remote.Options, (*size, ("latency", _seconds, "seconds before each answer of the server"), work))
    command = commands.add_parser("scale", help="everything one does with a store of many cells: seconds, peak memory")
    _add(
        command,
        scale.Options,
        (
            ("sizes", _sizes, "numbers of cells, separated by commas"),
            ("orders", _listed(scale.ORDERS), "orders of cells, separated by commas"),
            ("operations", _listed((scale.CONVERT, *OPERATIONS)), "what to measure, separated by commas"),
            ("memory_limit", str, "memory limit of conversion"),
            work,
        ),
    )
    return parser


def _add_python(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--python",
        type=_interpreter,
        action="append",
        default=[],
        metavar="PACKAGE=PATH",
        help="interpreter of a rival that cannot be installed with lazypert, such as cell-load=/path/to/python",
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a benchmark; the exit status is 1 if a rival failed, or a store or a batch has the wrong contents."""
    if not sys.platform.startswith("linux"):
        print("The benchmarks need Linux: they read the kernel's counters in /proc.", file=sys.stderr)
        return 2
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    known = {"convert": convert, "load": load, "fairness": fairness, "remote": remote, "scale": scale}
    chosen: Any = known[given.pop("benchmark")]
    if "python" in given:
        given["python"] = tuple(given["python"])
    try:
        report = chosen.run(chosen.Options(**given))
    except ConfigError as error:
        parser.error(str(error))
    return 1 if report["failed"] or report["disagreements"] else 0


if __name__ == "__main__":
    sys.exit(main())
