"""Sections of the demo that choose cells: splits, knockdown quality control, sentences and controls."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.design.controls import BatchControlMapping, ControlMappingConfig, RandomControlMapping
from lazypert.errors import ConfigError
from lazypert.pipeline import PerturbationPipeline, PerturbationPipelineConfig
from lazypert.plots import plot_knockdown, plot_splits, sample_cell_residuals
from lazypert.quality import KnockdownFilterConfig, OnTargetKnockdownFilter
from lazypert.splits.config import FewShotSplitterConfig, RandomSplitterConfig, ZeroShotSplitterConfig
from lazypert.splits.names import SPLITS
from lazypert.splits.splitters import FewShotSplitter, RandomSplitter, ZeroShotSplitter

if TYPE_CHECKING:
    import pandas as pd

    from lazypert._demo.state import Demo
    from lazypert.pipeline_result import PerturbationPipelineResult

_MAX_ROWS = 12  # of the knockdown table, before "... more"
_SENTENCE_SIZE, _SENTENCES_PER_BATCH = 16, 4


def split(demo: Demo) -> None:
    """Hold out a cell type, then perturbations, then random cells."""
    groups, rows, seed = demo.source.groups, [], demo.config.seed
    sizes = groups.table().groupby("cell_type")["n_cells"].sum()
    with demo.report.section("Splits"):
        if len(sizes) < 2:
            demo.report.skip("zero-shot", "the screen has one cell type, so none can be held out")
        else:
            demo.held_out_type = "Microglia" if demo.config.h5ad is None else str(sizes.idxmin())
            zero_shot = ZeroShotSplitterConfig(held_out_cell_types=(demo.held_out_type,), seed=seed)
            rows.append(_split(demo, "zero-shot", demo.held_out_type, ZeroShotSplitter(zero_shot)))
        held_out = demo.held_out_perturbations
        if not held_out:
            demo.report.skip("few-shot", "it needs at least two perturbations besides the controls")
        else:
            few_shot = FewShotSplitterConfig(held_out_perturbations=held_out, seed=seed)
            rows.append(_split(demo, "few-shot", ", ".join(held_out), FewShotSplitter(few_shot)))
        drawn = dict(demo.splits)
        rows.append(_split(demo, "random", "-", RandomSplitter(RandomSplitterConfig(seed=seed))))
        demo.report.table(["split", "held out", "train", "valid", "test", "assigned", "of cells"], rows)
    demo.figures["splits"] = lambda: plot_splits(groups, drawn)


def _split(demo: Demo, name: str, held_out: str, splitter: Any) -> list[object]:
    result = splitter.split(demo.source)
    demo.splits[f"{name}, {held_out} held out"] = result
    counts = [len(result[split_name]) for split_name in SPLITS]
    return [name, held_out, *counts, sum(counts), demo.source.groups.n_obs]


def filter_knockdown(demo: Demo) -> None:
    """Check for each perturbation whether the expression of its target is reduced."""
    config = KnockdownFilterConfig(var_gene_col=demo.config.var_gene_col)
    with demo.report.section("Knockdown quality control"):
        try:
            demo.knockdown = result = OnTargetKnockdownFilter(config).run(demo.source)
        except ConfigError as error:  # no perturbation is named after a gene, or values are negative
            demo.report.skip("knockdown", str(error))
            return
        demo.report.line(
            "residual",
            f"mean of the target's {result.units} in perturbed cells / in controls; passes below "
            f"{config.residual_expression:g}",
        )
        _report_knockdown(demo, result.table)
        demo.report.line(
            "passed",
            f"{int(result.table['passed'].sum()):,} of {len(result.table):,} perturbations and "
            f"{int(result.mask.sum()):,} of {len(result.mask):,} cells (controls always pass)",
        )
    demo.figures["knockdown"] = lambda: plot_knockdown(
        result, cell_residuals=sample_cell_residuals(demo.source, result, seed=demo.config.seed)
    )


def _report_knockdown(demo: Demo, table: pd.DataFrame) -> None:
    """Print the strongest knockdowns, and count the others by their result."""
    table = table.sort_values("residual_expression", kind="stable")
    shown = table[np.isfinite(table["residual_expression"])].head(_MAX_ROWS)
    rows = [
        [row.perturbation, row.n_cells, f"{row.residual_expression:.3f}", row.n_kept, row.reason]
        for row in shown.itertuples()
    ]
    if rows:
        demo.report.table(["perturbation", "cells", "residual", "kept", "result"], rows)
    others = Counter(reason.partition(" (")[0] for reason in table["reason"].iloc[len(shown) :])
    for reason, n in others.most_common():
        demo.report.line(f"{n:,} more", reason)


def build_sentences(demo: Demo) -> None:
    """Draw an epoch from the training sampler of a pipeline, and check each sentence."""
    with demo.report.section("Sentences"):
        demo.pipeline = result = _set_up_pipeline(demo)
        demo.report.line("pipeline", _describe_pipeline(result))
        codes, train = demo.source.get_group_codes(), result.train_indices
        is_visited = np.zeros(len(train), dtype=bool)
        n_sentences = n_impure = n_batches = 0
        for split_indices in result.train_sampler:
            sentences = codes[train[np.array(split_indices)]].reshape(-1, _SENTENCE_SIZE)
            is_visited[split_indices] = True
            n_batches += 1
            n_sentences += len(sentences)
            n_impure += int((sentences != sentences[:, :1]).any(axis=1).sum())
        demo.report.line("epoch", f"{n_batches:,} batches of up to {_SENTENCES_PER_BATCH} sentences")
        demo.report.line("purity", f"{n_sentences:,} sentences of {_SENTENCE_SIZE} cells checked, {n_impure} impure")
        demo.report.line("coverage", f"{int(is_visited.sum()):,} of {len(train):,} training cells visited")
        if len(train):
            _report_element(demo, result.get_element(train[0]))


def _set_up_pipeline(demo: Demo) -> PerturbationPipelineResult:
    """Set up a pipeline with all its parts, but without quality control if it leaves nothing to train on."""
    config = PerturbationPipelineConfig(
        pert_col=demo.config.pert_col,
        cell_type_col=demo.config.cell_type_col,
        batch_col=demo.config.batch_col,
        control_pert=demo.config.control_pert,
        split_mode="fewshot" if demo.held_out_perturbations else "random",
        held_out_perturbations=demo.held_out_perturbations or None,
        sentence_size=_SENTENCE_SIZE,
        sentences_per_batch=_SENTENCES_PER_BATCH,
        enable_knockdown_filter=demo.knockdown is not None and bool(demo.knockdown.table["passed"].any()),
        var_gene_col=demo.config.var_gene_col,
        cache_dir=demo.config.out,
        seed=demo.config.seed,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            result = PerturbationPipeline(config).setup(demo.store)
        except ConfigError as error:  # those that pass are held out
            demo.report.line("pipeline", str(error))
            result = PerturbationPipeline(replace(config, enable_knockdown_filter=False)).setup(demo.store)
    for warning in caught:
        demo.report.line("warning", str(warning.message))
    return result


def _describe_pipeline(result: PerturbationPipelineResult) -> str:
    quality = "after QC" if result.filter_mask is not None else "without QC, which leaves nothing to train on"
    sizes = ", ".join(f"{name} {len(result.splits[name]):,}" for name in SPLITS)
    return f"{result.config.split_mode} split {quality}: {sizes}"


def _report_element(demo: Demo, element: dict[str, Any]) -> None:
    columns = {"cell_type": demo.config.cell_type_col, "pert": demo.config.pert_col, "batch": demo.config.batch_col}
    labels = [element[f"{name}_name"] for name, column in columns.items() if column is not None]
    counts = element["counts"]
    demo.report.line("example cell", f"counts {counts.shape} {counts.dtype}; {' / '.join(map(str, labels))}")


def match_controls(demo: Demo) -> None:
    """Match every perturbed cell with controls, and check each pair."""
    with demo.report.section("Matched controls"):
        config = ControlMappingConfig(seed=demo.config.seed, on_empty="mask")
        rows = [_check_pairs(demo, RandomControlMapping(config))]
        if demo.config.batch_col is None:
            demo.report.skip("batch strategy", "the screen has no batch column")
        else:
            rows.append(_check_pairs(demo, BatchControlMapping(replace(config, strategy="batch"))))
        header = ["strategy", "pairs", "other cell type", "not a control", "same batch", "cells without control"]
        demo.report.table(header, rows)


def _check_pairs(demo: Demo, mapping: RandomControlMapping | BatchControlMapping) -> list[object]:
    source = demo.source
    cells, controls = mapping.mapped_rows(source), mapping.build_mapping(source)
    has_control = ~np.ma.getmaskarray(controls)[:, 0]
    cells, matched = cells[has_control], np.asarray(controls)[has_control, 0]
    cell_type, batch = source.get_cell_type_codes(), source.get_batch_codes()
    same_batch = f"{np.mean(batch[cells] == batch[matched]):.1%}" if demo.config.batch_col and len(cells) else "-"
    return [
        mapping.strategy,
        len(cells),
        int((cell_type[cells] != cell_type[matched]).sum()),
        int((~source.get_control_mask()[matched]).sum()),
        same_batch,
        int((~has_control).sum()),
    ]
