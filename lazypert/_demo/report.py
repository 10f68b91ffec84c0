"""The printed report of the demo."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_WIDTH = 92


class Report:
    """Prints sections of aligned lines and tables, with the time that each section took."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @contextmanager
    def section(self, title: str) -> Iterator[None]:
        """Collect the lines of a section, and print them when it ends."""
        start, self._lines = time.perf_counter(), []
        try:
            yield
        finally:
            took = f" {time.perf_counter() - start:.2f} s"
            print(f"\n{title} ".ljust(_WIDTH + 1 - len(took), "-") + took)
            print(*self._lines, sep="\n", flush=True)

    def line(self, name: str, value: object) -> None:
        """Add a name and a value."""
        self._lines.append(f"  {name:<19}{value}")

    def skip(self, name: str, reason: str) -> None:
        """Add a line that says why something was skipped."""
        self.line(name, f"skipped: {reason}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table, whose columns of numbers are aligned to the right."""
        texts = [[f"{value:,}" if isinstance(value, int) else str(value) for value in row] for row in rows]
        widths = [max(len(text) for text in column) for column in zip(header, *texts, strict=True)]
        is_right = [all(not isinstance(row[i], str) or _is_number(row[i]) for row in rows) for i in range(len(header))]
        for line in [list(header), *texts]:
            aligned = [
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(line, widths, is_right, strict=True)
            ]
            self._lines.append(f"  {'  '.join(aligned)}".rstrip())


def _is_number(value: object) -> bool:
    with suppress(ValueError):
        float(str(value).replace(",", "").replace("%", ""))
        return True
    return value == "-"


def join_names(names: Sequence[Any] | NDArray[Any], limit: int = 6) -> str:
    """Join names with commas, and shorten long lists."""
    shown = ", ".join(map(str, names[:limit]))
    return shown if len(names) <= limit else f"{shown}, ..."
