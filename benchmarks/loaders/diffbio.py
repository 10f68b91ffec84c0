"""DiffBio: the loop over elements from its pipeline's documentation, on a screen that it holds in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.loaders.base import BATCH, CELL_TYPE, CONTROL, HVG, PERTURBATION, Batch, Genes, Job, Opened

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_elements(job: Job, _: Genes) -> Opened:
    """Cells and their mapped controls, fetched one by one and stacked into batches."""
    import jax
    import jax.numpy as jnp
    from diffbio.pipelines.perturbation import PerturbationPipeline, PerturbationPipelineConfig

    config = PerturbationPipelineConfig(
        pert_col=PERTURBATION,
        cell_type_col=CELL_TYPE,
        batch_col=BATCH,
        control_pert=CONTROL,
        output_space="gene" if job.form == "hvg" else "all",
        hvg_col=HVG,
        sentence_size=job.sentence_size,
        sentences_per_batch=job.sentences_per_batch,
        train_frac=0.98,
        valid_frac=0.01,
    )
    result = PerturbationPipeline(config).setup([job.source])
    source, train = result.source, np.asarray(result.train_indices)
    # Only perturbed cells are mapped; controls serve as their own controls.
    control_of = np.arange(len(source))[:, None]
    control_of[~source.get_control_mask()] = result.control_mapping

    def stack(cells: list[int]) -> Any:
        return jnp.stack([source[cell]["counts"] for cell in cells])

    def epoch(number: int) -> Iterator[Batch]:
        result.train_sampler.set_epoch(number)
        for split_index in result.train_sampler:
            cells = train[split_index].tolist()
            controls = stack(control_of[cells, 0].tolist()) if job.controls else None
            values = stack(cells)
            jax.block_until_ready((values, controls))
            yield Batch(len(cells), values, controls)

    return Opened(epoch)
