from __future__ import annotations

import contextlib
import io
import re

import numpy as np
import pandas as pd
import pytest

from lazypert._cli import main
from lazypert._demo import FIGURES, DemoConfig, run_demo
from lazypert._internal.randomness import generator
from lazypert.errors import ColumnNotFoundError, ConfigError, LabelNotFoundError
from tests.support.data import DATA


def run(*arguments):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["demo", *map(str, arguments)]) == 0
    return printed.getvalue()


def line_of(report, name):
    return next(" ".join(line.split()) for line in report.splitlines() if line.strip().startswith(name))


def is_figure(path):
    from matplotlib.image import imread

    image = (255 * imread(path)).astype(np.uint8)
    return min(image.shape[:2]) > 300 and len(np.unique(np.ascontiguousarray(image).view(np.uint32))) > 10


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "made" / "here"
    return out, run("--out", out)


@pytest.fixture(scope="module")
def log_screen(tmp_path_factory):
    """A log-normalised float64 screen without batches, with one unlabelled cell, and controls in one cell type only."""
    import anndata

    rng = np.random.default_rng(0)
    # As many K562 controls and genes as in the reference screen, so that JAX does not compile again.
    n, genes = 900, ["AAA", "BBB", "CCC", *(f"g{i}" for i in range(197))]
    pert = np.array(["ctrl", "AAA", "BBB", "AAA+BBB"])[np.arange(n) % 4]
    cell_type = np.where(np.arange(n) < 600, "K562", "RPE1")
    counts = rng.poisson(4, (n, len(genes))).astype(np.float64)
    counts[pert == "AAA", 0] *= rng.random((pert == "AAA").sum()) < 0.05
    pert[(pert == "ctrl") & (cell_type == "RPE1")] = "BBB"
    obs = pd.DataFrame({"condition": pert, "cell_type": cell_type}, index=[f"c{i}" for i in range(n)])
    obs.iloc[5, 0] = None
    adata = anndata.AnnData(np.log1p(counts / 3), obs=obs, var=pd.DataFrame(index=genes))
    path = tmp_path_factory.mktemp("log") / "log.h5ad"
    adata.write_h5ad(path)
    return path


# -- the reference screen ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cells 900", "cells 900"),
        ("cell types", "cell types 3 (Astrocyte, Microglia, Neuron)"),
        ("perturbations", "perturbations 6, including the control 'non-targeting'"),
        ("controls", "controls 150 cells"),
        ("groups", "groups 18, each of 50 cells"),
        ("zero-shot", "zero-shot Microglia 533 67 300 900 900"),
        ("few-shot", "few-shot BRCA1, TP53 550 50 300 900 900"),
        ("jit", "jit the model was compiled once"),
    ],
    ids=lambda value: value,
)
def test_the_report_states_the_known_numbers(reference, name, expected):
    report = re.sub(r" +", " ", reference[1])
    assert expected in [line.strip() for line in report.splitlines()], report


def test_every_target_is_reduced_to_a_tenth(reference):
    for target in ("BRCA1", "TP53", "KRAS", "MYC", "EGFR"):
        _, cells, residual, kept, result = line_of(reference[1], f"{target} ").split()
        assert cells == "150"
        assert float(residual) == pytest.approx(0.1, abs=0.03)
        assert int(kept) > 140
        assert result == "passed"


def test_sentences_are_pure_and_cover_the_training_cells(reference):
    sentences, impure = re.search(
        r"purity +([\d,]+) sentences of 16 cells checked, (\d+) impure", reference[1]
    ).groups()
    seen, train = re.search(r"coverage +([\d,]+) of ([\d,]+) training cells", reference[1]).groups()
    assert int(impure) == 0
    assert seen == train
    assert int(sentences) * 16 >= int(train) > 500
    assert f"train {train}, " in line_of(reference[1], "pipeline")


def test_controls_share_the_cell_type_and_with_the_batch_strategy_the_batch(reference):
    assert re.fullmatch(r"random 750 0 0 [45]\d\.\d% 0", line_of(reference[1], "random      "))
    assert line_of(reference[1], "batch      ").startswith("batch 750 0 0 100.0% 0")


def test_downsampling_keeps_the_requested_fraction_and_has_gradients(reference):
    rows = re.findall(r"^ +(\d\.\d\d) +([\d,]+) +(\d\.\d{4}) +(\d+)$", reference[1], re.MULTILINE)
    assert [float(row[0]) for row in rows] == [1.0, 0.75, 0.5, 0.25, 0.1]
    total = int(rows[0][1].replace(",", ""))
    for fraction, reads, ratio, _ in rows:
        assert float(ratio) == pytest.approx(float(fraction), abs=0.01)
        assert int(reads.replace(",", "")) / total == pytest.approx(float(ratio), abs=1e-4)
    finite, size, nonzero = re.search(
        r"norm [\d.e-]+; ([\d,]+) of ([\d,]+) finite, ([\d,]+) nonzero", reference[1]
    ).groups()
    assert finite == size == nonzero == "30,000"
    assert line_of(reference[1], "d loss/d fraction").endswith("finite and nonzero")


def test_the_store_is_verified_and_opened_lazily_and_batches_have_static_shapes(reference):
    assert re.search(r"verified +ok: \d+ files", reference[1])
    lazy, of, tasks = re.search(r"lazy: (\d+) of (\d+) variables .* (\d+) tasks run", reference[1]).groups()
    assert lazy == of
    assert tasks == "0"
    assert len(re.findall(r"^  batch +counts \(64, 200\), controls \(64, 1, 200\)", reference[1], re.MULTILINE)) == 1
    assert "train 600, valid 0, test 300 (cell type held out: Microglia)" in reference[1]


@pytest.mark.slow
def test_figures_are_drawn_and_a_second_run_replaces_them(reference):
    out, _ = reference
    names = {path.name for path in out.iterdir()}
    assert set(FIGURES.values()) < names
    for name in FIGURES.values():
        assert is_figure(out / name)
    report = run("--out", out, "--seed", 7)
    assert {path.name for path in out.iterdir()} == names
    assert "533     67   300" in report


# -- a user's file ----------------------------------------------------------------------------------


def test_sections_that_a_log_normalised_screen_without_batches_does_not_allow_are_skipped(log_screen, tmp_path):
    (tmp_path / "downsampling.png").write_bytes(b"of an earlier demo")
    before = log_screen.read_bytes()
    seed = next(s for s in range(99) if "AAA" not in generator(s).choice(["AAA", "AAA+BBB", "BBB"], 2, replace=False))
    options = ("--pert-col", "condition", "--control-pert", "ctrl", "--seed", seed)
    report = run("--out", tmp_path, "--h5ad", log_screen, *options)
    assert log_screen.read_bytes() == before
    assert {path.name for path in log_screen.parent.iterdir()} == {"log.h5ad"}, "nothing is written next to the file"
    assert "none: no obs column 'batch'" in line_of(report, "batch ")
    assert line_of(report, "batch strategy") == "batch strategy skipped: the screen has no batch column"
    assert "only raw counts can be downsampled" in line_of(report, "downsampling")
    assert line_of(report, "cells").startswith("cells 900 (1 unlabelled)")
    assert re.match(r"zero-shot RPE1 \d+ \d+ 300 899 900", line_of(report, "zero-shot"))
    assert line_of(report, "1 more") == "1 more target gene not measured"
    assert line_of(report, "AAA ").endswith("passed")
    assert "1 group has no controls: (RPE1, AAA)" in line_of(report, "loader")
    n_pairs, n_other_type, n_not_control, _, unmatched = line_of(report, "random      ").split()[1:]
    assert (n_other_type, n_not_control) == ("0", "0")
    assert int(n_pairs) + int(unmatched) == 899 - 150, "all labelled cells that are not controls"
    assert int(unmatched) == 225 + 75, "RPE1 has no controls"
    assert is_figure(tmp_path / "splits.png")
    assert is_figure(tmp_path / "knockdown.png")
    assert not (tmp_path / "downsampling.png").exists()


@pytest.mark.slow
def test_zero_shot_is_skipped_for_a_screen_with_one_cell_type(log_screen, tmp_path):
    import anndata

    adata = anndata.read_h5ad(log_screen)
    adata = adata[(adata.obs["cell_type"] == "K562") & adata.obs["condition"].isin(["ctrl", "AAA"])].copy()
    adata.layers["counts"] = np.rint(np.expm1(adata.X) * 3)
    del adata.obs["cell_type"]
    adata.write_h5ad(tmp_path / "one.h5ad")
    report = run(
        "--out", tmp_path / "out", "--h5ad", tmp_path / "one.h5ad", "--pert-col", "condition", "--control-pert", "ctrl"
    )
    assert "skipped: the screen has one cell type" in line_of(report, "zero-shot")
    assert "skipped: it needs at least two perturbations" in line_of(report, "few-shot")
    assert "cells              150 of 150 controls, from layer 'counts', because X does not hold counts" in report
    assert line_of(report, "jit") == "jit the model was compiled once"


def test_wrong_columns_labels_and_seeds_are_errors(log_screen, tmp_path):
    with pytest.raises(ColumnNotFoundError, match="condition"):
        run_demo(DemoConfig(out=tmp_path, h5ad=log_screen, pert_col="conditon", control_pert="ctrl"))
    with pytest.raises(LabelNotFoundError, match="control"):
        run_demo(DemoConfig(out=tmp_path, h5ad=log_screen, pert_col="condition", control_pert="control"))
    with pytest.raises(ConfigError, match="seed"):
        DemoConfig(seed=-1)
    assert [path for path in tmp_path.iterdir() if "zarr" in path.name] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "schraivogel2020_tapseq_k562_counts.h5ad",
            ("--pert-col", "perturbation", "--control-pert", "non-targeting"),
            ["cells 21,977", "passed 8 of 15", "zero-shot skipped: the screen has one cell type"],
        ),
        (
            "perturbench_devel_asis.h5ad",
            ("--pert-col", "condition", "--control-pert", "control"),
            ["cells 5,961", "downsampling skipped", "batch strategy skipped"],
        ),
    ],
    ids=["tap-seq", "perturbench"],
)
def test_published_screens(name, options, expected, tmp_path):
    file = DATA / "screens" / name
    if not file.exists():
        pytest.skip(f"{name} is not in {DATA} (set LAZYPERT_DATA)")
    report = re.sub(r" +", " ", run("--out", tmp_path, "--h5ad", file, *options))
    for text in (*expected, " 0 impure", "the model was compiled once"):
        assert text in report
    seen, train = re.search(r"coverage ([\d,]+) of ([\d,]+) training cells", report).groups()
    assert seen == train
