"""Masks on published screens equal those of cell-load: of its rules written out, and its own if it is installed."""

import anndata
import numpy as np
import pytest

import lazypert as lp
from tests.support.knockdown import cell_load_mask
from tests.support.screens import in_store_order, real_screen

SETTINGS = [(0.3, 0.5, 30), (0.5, 0.5, 10), (0.7, 0.7, 5), (0.9, 1.0, 1)]
SCREENS = {
    "schraivogel": ("schraivogel2020_tapseq_k562_counts.h5ad", "perturbation", "non-targeting", None, "batch"),
    "perturbench": ("norman2019_mcfaline2023_perturbench_counts.h5ad", "condition", "control", None, "dataset"),
    "perturbench log1p": (
        "norman2019_mcfaline2023_perturbench_counts.h5ad", "condition", "control", "lognorm", "cell_type",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=SCREENS)
def screen(request, tmp_path_factory):
    """Sources with one context, and with a context for each file that cell-load would see; and the cells in order."""
    name, pert_col, control, layer, divided_by = SCREENS[request.param]
    path, found = real_screen(name), {}
    for by in (None, divided_by):
        config = lp.PerturbationSourceConfig(
            file_path=path, pert_col=pert_col, control_pert=control, layer=layer, cell_type_col=by, batch_col=None,
            cache_dir=tmp_path_factory.mktemp("screen"),
        )  # fmt: skip
        source = lp.PerturbationAnnDataSource(config)
        found[by] = source, in_store_order(source, anndata.read_h5ad(path))
    return found, pert_col, control, layer


def files_of(adata, by):
    """(n_obs,) bool of each part that cell-load would get as a file."""
    if by is None:
        return [np.ones(adata.n_obs, dtype=bool)]
    return [(adata.obs[by] == label).to_numpy() for label in adata.obs[by].unique()]


def ours(source, by, setting):
    residual, cell_residual, min_cells = setting
    config = lp.KnockdownFilterConfig(
        residual_expression=residual, cell_residual_expression=cell_residual, min_cells=min_cells,
        verdict_by=() if by is None else ("cell_type",),
    )  # fmt: skip
    return lp.OnTargetKnockdownFilter(config).run(source).mask


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_rules_written_out(screen, setting):
    found, pert_col, control, layer = screen
    for by, (source, adata) in found.items():
        dense = (adata.X if layer is None else adata.layers[layer]).toarray()
        labels, expected = adata.obs[pert_col].to_numpy(dtype=object), np.zeros(adata.n_obs, dtype=bool)
        for cells in files_of(adata, by):
            expected[cells] = cell_load_mask(
                dense[cells], labels[cells], list(adata.var_names), *setting, control=control
            )
        np.testing.assert_array_equal(ours(source, by, setting), expected)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_cell_load_itself(screen, setting):
    data_utils = pytest.importorskip("cell_load.utils.data_utils", reason="cell-load is not installed")
    found, pert_col, control, layer = screen
    for by, (source, adata) in found.items():
        expected = np.zeros(adata.n_obs, dtype=bool)
        for cells in files_of(adata, by):
            file = adata[cells].copy()
            file.var["gene_name"] = file.var_names
            residual, cell_residual, min_cells = setting
            kept = data_utils.filter_on_target_knockdown(
                file, pert_col, control, residual, cell_residual, min_cells, layer, "gene_name"
            )
            expected |= cells & np.isin(adata.obs_names, kept.obs_names)
        np.testing.assert_array_equal(ours(source, by, setting), expected)
