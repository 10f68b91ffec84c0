"""``python -m benchmarks convert --help``, ``python -m benchmarks load --help``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import convert, load
from benchmarks.load_summary import CACHES
from benchmarks.loaders import RIVALS as LOADERS
from benchmarks.loaders.annbatch import Setting
from benchmarks.loaders.base import ENDPOINTS
from benchmarks.rivals import RIVALS
from benchmarks.summary import PLAIN
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    # Name of the option, what reads it, and what it is.
    Arguments = Iterable[tuple[str, Callable[[str], Any], str]]


def _listed(known: tuple[str, ...]):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, expected some of {', '.join(known)}")
        return names

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected seconds, 0 or more")
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
    package, found, path = text.partition("=")
    known = dict.fromkeys(rival.package for rival in LOADERS.values())
    if not found or package not in known:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected PACKAGE=PATH, the package one of {', '.join(known)}")
    return package, path


def _add(command: argparse.ArgumentParser, options: type, arguments: Arguments) -> None:
    default = {field.name: field.default for field in fields(options)}
    for name, kind, text in arguments:
        value = default[name]
        shown = "" if value is None else f" (default: {','.join(value) if isinstance(value, tuple) else value})"
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"{text}{shown}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="lazypert against its peers.")
    commands = parser.add_subparsers(dest="benchmark", required=True)
    size: Arguments = (
        ("cells", _positive, "cells of the screen"),
        ("genes", _positive, "its genes"),
        ("nnz", float, "mean nonzeros a cell"),
    )
    work = ("work", Path, "folder of the screens (kept and reused), the stores and the report")
    command = commands.add_parser("convert", help="convert a screen: time, peak memory, bytes")
    _add(
        command,
        convert.Options,
        (
            *size,
            ("factor", _positive, "times the cells that the larger screen of --scaling has"),
            ("runs", _positive, "rounds: every rival converts every screen once in each"),
            ("rivals", _listed(tuple(RIVALS)), "who converts, separated by commas"),
            ("screens", _listed((PLAIN, convert.GZIP)), "what they convert, separated by commas"),
            ("memory_limit", str, "limit given to lazypert"),
            work,
        ),
    )
    command.add_argument("--scaling", action="store_true", help="lazypert on --factor times the cells as well")
    command = commands.add_parser("load", help="load a screen in batches: cells a second, memory, bytes")
    _add(
        command,
        load.Options,
        (
            *size,
            ("cell_types", _positive, "its cell types"),
            ("perturbations", _positive, "its perturbations, with the control and the unassigned cells"),
            ("small_cells", _positive, "cells of the screen of those that hold it dense"),
            ("sentence_size", _positive, "cells of one group that stand together"),
            ("sentences_per_batch", _positive, "how many of these make a batch"),
            ("runs", _positive, "rounds: every rival does everything once in each, the slow in the first only"),
            ("seconds", _seconds, "seconds of a run after its first batch"),
            ("slow_seconds", _seconds, "the same for the slow"),
            ("sweep_seconds", _seconds, "the same for annbatch's settings, each tried twice"),
            ("rivals", _listed(tuple(LOADERS)), "who loads, separated by commas"),
            ("endpoints", _listed(ENDPOINTS), "what a batch is in the end, separated by commas"),
            ("caches", _listed(CACHES), "states of the page cache, separated by commas"),
            ("sweep", _settings, "annbatch's settings to try, separated by commas"),
            ("threads", _positive, "threads of lazypert and of the limit; by default lazypert's own choice"),
            work,
        ),
    )
    command.add_argument("--no-overlap", dest="overlap", action="store_false", help="leave out the model's step")
    command.add_argument(
        "--python",
        type=_interpreter,
        action="append",
        default=[],
        metavar="PACKAGE=PATH",
        help="interpreter of a rival that cannot be installed beside lazypert, such as cell-load=/path/to/python",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status is 1 if a rival failed, or if a store or a batch is not what it should be."""
    if not sys.platform.startswith("linux"):
        print("The benchmarks need Linux: they read the kernel's counters in /proc.", file=sys.stderr)
        return 2
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    chosen: Any = {"convert": convert, "load": load}[given.pop("benchmark")]
    if "python" in given:
        given["python"] = tuple(given["python"])
    try:
        report = chosen.run(chosen.Options(**given))
    except ConfigError as error:
        parser.error(str(error))
    return 1 if report["failed"] or report["disagreements"] else 0


if __name__ == "__main__":
    sys.exit(main())
