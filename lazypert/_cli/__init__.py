"""The command ``lazypert``: demo, convert, append, add-obs, info, verify, doctor."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from lazypert._cli.arguments import parse
from lazypert._cli.output import printable
from lazypert.errors import LazypertError

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERRUPTED = 130  # exit status of a process that Ctrl-C ended, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments; None uses those of the process.

    Returns
    -------
    Exit status: 0, 1 after an error, which is printed as one message on stderr, or 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        With 2 for invalid arguments, with 0 for ``--help`` and ``--version``.
    """
    options = parse(argv)
    _log_to_stderr()
    try:
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("lazypert: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (LazypertError, OSError) as error:
        print(f"lazypert: error: {printable(error)}", file=sys.stderr)
        return 1
    return 0


class _Printable(logging.Formatter):
    """Formats messages without what a terminal would take for commands."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _log_to_stderr() -> None:
    """Print log messages of the library, for example when a conversion resumes, on stderr."""
    log = logging.getLogger("lazypert")
    log.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("lazypert: %(message)s"))
    log.handlers, log.propagate = [handler], False
