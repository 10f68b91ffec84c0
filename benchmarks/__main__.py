"""``python -m benchmarks convert --help``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from benchmarks.convert import GZIP, Options, run
from benchmarks.rivals import RIVALS
from benchmarks.summary import PLAIN
from lazypert.errors import ConfigError


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


def _parser() -> argparse.ArgumentParser:
    default = {field.name: field.default for field in fields(Options)}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="lazypert against its peers.")
    commands = parser.add_subparsers(dest="benchmark", required=True)
    convert = commands.add_parser("convert", help="convert a screen: time, peak memory, bytes")
    for name, kind, text in (
        ("cells", _positive, "cells of the screen"),
        ("genes", _positive, "its genes"),
        ("nnz", float, "mean nonzeros a cell"),
        ("factor", _positive, "times the cells that the larger screen of --scaling has"),
        ("runs", _positive, "rounds: every rival converts every screen once in each"),
        ("rivals", _listed(tuple(RIVALS)), "who converts, separated by commas"),
        ("screens", _listed((PLAIN, GZIP)), "what they convert, separated by commas"),
        ("memory_limit", str, "limit given to lazypert"),
        ("work", Path, "folder of the screens (kept and reused), the stores (removed) and the report"),
    ):
        shown = ",".join(default[name]) if isinstance(default[name], tuple) else default[name]
        flag = f"--{name.replace('_', '-')}"
        convert.add_argument(flag, type=kind, default=default[name], help=f"{text} (default: {shown})")
    convert.add_argument("--scaling", action="store_true", help="lazypert on --factor times the cells as well")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status is 1 if a rival failed, or if a store did not hold its screen."""
    if not sys.platform.startswith("linux"):
        print("The benchmarks need Linux: they read the kernel's counters in /proc.", file=sys.stderr)
        return 2
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    del given["benchmark"]
    try:
        report = run(Options(**given))
    except ConfigError as error:
        parser.error(str(error))
    return 1 if report["failed"] or report["disagreements"] else 0


if __name__ == "__main__":
    sys.exit(main())
