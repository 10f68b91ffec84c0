"""cell-load: its data module, on a file in random order and on one in grouped order.

Its batches are dense PyTorch tensors and always include controls. They are not converted: JAX could use
them without a copy, and cell-load should not be charged for a conversion.
"""

from __future__ import annotations

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
    import os

    from cell_load.data_modules import PerturbationDataModule

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "screen.toml"
        config.write_text(f'[datasets]\nscreen = "{job.source}"\n[training]\nscreen = "train"\n')
        module = PerturbationDataModule(
            toml_config_path=str(config),
            embed_key="X_hvg" if job.form == "hvg" else None,
            output_space="gene" if job.form == "hvg" else "all",
            batch_size=job.sentences_per_batch,
            cell_sentence_len=job.sentence_size,
            num_workers=os.cpu_count() or 1,
            pert_col=PERTURBATION,
            cell_type_key=CELL_TYPE,
            batch_col=BATCH,
            control_pert=CONTROL,
            basal_mapping_strategy="random",
            n_basal_samples=1,
            should_yield_control_cells=True,
            use_consecutive_loading=consecutive,
            is_log1p=False,
        )
        module.setup()
    loader: Any = module.train_dataloader()

    def epoch(_: int) -> Iterator[Batch]:
        for batch in loader:
            yield Batch(len(batch["pert_cell_emb"]), batch["pert_cell_emb"], batch["ctrl_cell_emb"])

    return Opened(epoch)
