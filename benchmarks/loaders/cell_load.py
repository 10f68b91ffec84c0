"""cell-load: its data module, on a file in random order and on one in grouped order.

Its batches are dense PyTorch tensors and always include controls. They are not converted: JAX could use
them without a copy, and cell-load should not be charged for a conversion.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loaders.base import BATCH, CELL_TYPE, CONTROL, PERTURBATION, Batch, Genes, Job, Opened

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_random_order(job: Job, _: Genes) -> Opened:
    """Sentences of cells from anywhere in the file, read cell by cell."""
    return _open(job, consecutive=False)


def open_grouped_order(job: Job, _: Genes) -> Opened:
    """Sentences of adjacent cells, which cell-load reads together (``use_consecutive_loading``)."""
    return _open(job, consecutive=True)


def _open(job: Job, *, consecutive: bool) -> Opened:
    loader = train_loader(
        job.source,
        sentence_size=job.sentence_size,
        sentences_per_batch=job.sentences_per_batch,
        workers=os.cpu_count() or 1,
        embed_key="X_hvg" if job.form == "hvg" else None,
        output_space="gene" if job.form == "hvg" else "all",
        use_consecutive_loading=consecutive,
    )

    def epoch(_: int) -> Iterator[Batch]:
        for batch in loader:
            yield Batch(len(batch["pert_cell_emb"]), batch["pert_cell_emb"], batch["ctrl_cell_emb"])

    return Opened(epoch)


def experiment_file(folder: Path, source: str | Path) -> Path:
    """Write the TOML file that makes all cells of a screen training cells."""
    path = folder / "experiment.toml"
    path.write_text(f'[datasets]\nscreen = "{source}"\n[training]\nscreen = "train"\n')
    return path


def train_loader(
    source: str | Path, *, sentence_size: int, sentences_per_batch: int, workers: int, **options: Any
) -> Any:
    """Its training DataLoader over all cells of a screen; `options` are those of its data module."""
    from cell_load.data_modules import PerturbationDataModule

    options = {"basal_mapping_strategy": "random", "embed_key": None, "output_space": "all"} | options
    with tempfile.TemporaryDirectory() as folder:
        module = PerturbationDataModule(
            toml_config_path=str(experiment_file(Path(folder), source)),
            batch_size=sentences_per_batch,
            cell_sentence_len=sentence_size,
            num_workers=workers,
            pert_col=PERTURBATION,
            cell_type_key=CELL_TYPE,
            batch_col=BATCH,
            control_pert=CONTROL,
            n_basal_samples=1,
            should_yield_control_cells=True,
            is_log1p=False,
            **options,
        )
        module.setup()
    return module.train_dataloader()
