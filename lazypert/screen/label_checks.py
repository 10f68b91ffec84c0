"""Labels that look like mistakes: missing values written as text, and spellings of one label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MISSING = frozenset({"", "nan", "na", "n/a", "none", "null", "<na>"})
_N_EXAMPLES = 5


def suspicious_labels(column: str, labels: Sequence[str], n_cells: Sequence[int]) -> Iterator[str]:
    """Describe labels that may be mistakes, one line each.

    Parameters
    ----------
    column
        Name of the obs column.
    labels, n_cells
        Labels, and the number of cells that have each.
    """
    for label, n in zip(labels, n_cells, strict=True):
        if label.strip().lower() in _MISSING:
            yield (
                f"obs/{column}: {n:,} {'cell is' if n == 1 else 'cells are'} labelled {label!r}, which is a label like "
                "any other; if it stands for a missing value, remove it in the file or exclude it from splits"
            )
    spellings: dict[str, list[str]] = {}
    for label in labels:
        spellings.setdefault(" ".join(label.split()).casefold(), []).append(label)
    repeated = [same for same in spellings.values() if len(same) > 1]
    if repeated:
        examples = "; ".join(", ".join(map(quoted, same)) for same in repeated[:_N_EXAMPLES])
        yield (
            f"obs/{column}: {len(repeated):,} {'label is' if len(repeated) == 1 else 'labels are'} spelt in several "
            f"ways ({examples}{'; ...' if len(repeated) > _N_EXAMPLES else ''}), which stay different labels"
        )
    padded = [label for label in labels if label != label.strip()]
    if padded:
        examples = ", ".join(map(quoted, padded[:_N_EXAMPLES]))
        yield (
            f"obs/{column}: {len(padded):,} {'label begins or ends' if len(padded) == 1 else 'labels begin or end'} "
            f"with blanks ({examples}{', ...' if len(padded) > _N_EXAMPLES else ''}), which are part of the label"
        )
