"""One epoch of cell-load over a null screen, in its own process: prints one JSON line.

``python -m benchmarks._fairness_worker JOB``, with the job as JSON. Runs in an interpreter without lazypert.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.fairness_statistics import Cells, NullStatistics, NullTally
from benchmarks.loaders.base import CONTROL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Measure an epoch of its training loader."""
    from benchmarks.loaders.cell_load import train_loader

    loader = train_loader(
        job["source"],
        sentence_size=job["sentence_size"],
        sentences_per_batch=job["sentences_per_batch"],
        workers=job["workers"],
        basal_mapping_strategy=job["strategy"],
        use_consecutive_loading=job["consecutive"],
        barcode=True,
    )
    found = statistics(
        loader,
        perturbations=job["perturbations"],
        n_batches=job["n_batches"],
        n_controls=job["n_controls"],
        sentence_size=job["sentence_size"],
        by_batch=job["strategy"] == "batch",
    )
    return found.summary() | {"z": np.round(found.z, 4).ravel().tolist()}


def statistics(
    batches: Iterable[dict[str, Any]],
    *,
    perturbations: list[str],
    n_batches: int,
    n_controls: int,
    sentence_size: int,
    by_batch: bool,
) -> NullStatistics:
    """Compute the statistics of batches in cell-load's form.

    cell-load fills short sentences with repeated cells and does not mark them. Here, a cell counts only the first
    time that it comes in the epoch, as lazypert's padding is left out.

    Parameters
    ----------
    perturbations
        All labels.
    """
    codes, numbers = _Numbers(), _Numbers()
    code_of = {label: code for code, label in enumerate(perturbations)}
    tally, seen = None, np.zeros(0, dtype=bool)
    for batch in batches:
        cell, control = numbers(batch["pert_cell_barcode"]), numbers(batch["ctrl_cell_barcode"])
        seen = np.append(seen, np.zeros(len(numbers.known) - len(seen), dtype=bool))
        is_first = np.zeros(len(cell), dtype=bool)
        is_first[np.unique(cell, return_index=True)[1]] = True
        is_padding = seen[cell] | ~is_first
        seen[cell] = True
        counts = np.asarray(batch["pert_cell_emb"])
        if tally is None:
            tally = NullTally(
                n_perturbations=len(perturbations),
                n_batches=n_batches,
                n_genes=counts.shape[1],
                sentence_size=sentence_size,
                by_batch=by_batch,
            )
        tally.add(
            Cells(
                counts=counts,
                controls=np.asarray(batch["ctrl_cell_emb"])[:, None],
                control_id=control[:, None],
                perturbation=np.array([code_of[name] for name in batch["pert_name"]]),
                batch=codes(batch["batch_name"]),
                dataset=np.zeros(len(cell), dtype=np.int64),
                is_padding=is_padding,
            )
        )
    if tally is None:
        raise RuntimeError("the epoch has no batches")
    return tally.statistics(control=code_of[CONTROL], n_controls=n_controls)


class _Numbers:
    """Numbers names in the order in which they come."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, names: Iterable[str]) -> NDArray[np.int64]:
        return np.array([self.known.setdefault(str(name), len(self.known)) for name in names])


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
