"""What a report on splits finds: one finding per kind and pair of splits."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

Level = Literal["error", "warning", "note"]

LEVELS: tuple[Level, ...] = get_args(Level)

Kind = Literal[
    "same_row",
    "same_name",
    "same_name_across_datasets",
    "same_content",
    "too_few_genes",
    "combination_with_held_out_perturbation",
    "combination_of_seen_parts",
    "shared_controls",
    "shared_perturbation",
    "shared_cell_type",
    "shared_batch",
    "shared_dataset",
]

KINDS: tuple[Kind, ...] = get_args(Kind)

N_EXAMPLES = 3


class Finding(NamedTuple):
    """One finding.

    Attributes
    ----------
    level
        ``"error"``: the same cell is in two splits. ``"warning"``: a common claim may not hold. ``"note"``: what is
        shared, and expected in many designs.
    kind
        What was found.
    splits
        The split, or the two splits.
    n_cells
        Cells that are concerned.
    n_labels
        Different labels, or different cells of which there are several copies.
    examples
        The first few of these.
    explanation
        Why it may matter, and what to do.
    """

    level: Level
    kind: Kind
    splits: tuple[str, ...]
    n_cells: int
    n_labels: int
    examples: tuple[str, ...]
    explanation: str

    @property
    def rank(self) -> tuple[int, int]:
        """Place among other findings: by level, then by kind."""
        return LEVELS.index(self.level), KINDS.index(self.kind)
