from lazypert._cli import main
from tests.support.cli import ALL_ROLES, fields


def test_info_describes_the_screen(store, capsys):
    assert main(["info", str(store)]) == 0
    printed = capsys.readouterr().out
    info = fields(printed)
    assert info["cells"] == "900"
    assert info["genes"] == "200"
    assert info["pert_col"] == "perturbation (6 labels)"
    assert info["control_pert"] == "non-targeting (150 cells)"
    assert info["cell_type_col"] == "cell_type (3 labels)"
    assert info["batch_col"] == "batch (2 labels)"
    assert info["order"] == "grouped, in random order within groups"
    assert info["source"].startswith("screen.h5ad (900 cells, ")
    assert info["matrix"].startswith("X  uint16  ")
    assert "counts from 0 to " in info["matrix"]
    assert info["embedding"] == "obsm/X_pca  float32  20 dimensions"
    assert info["groups"] == "18, each of 50 cells"
    lines = [line.split() for line in printed.splitlines() if line.startswith("  ")]
    assert ["Microglia", "non-targeting", "50", "2", "control"] in lines
    assert sum(line[0] in {"Astrocyte", "Microglia", "Neuron"} for line in lines) == 18


def test_info_lists_twenty_groups_and_counts_the_others(tmp_path, capsys):
    from lazypert.simulate import SimulationConfig, simulate_screen

    simulate_screen(tmp_path / "s.h5ad", SimulationConfig(n_cells=400, n_genes=60, n_perturbations=12))
    assert main(["convert", str(tmp_path / "s.h5ad"), str(tmp_path / "s.zarr"), *ALL_ROLES]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "s.zarr")]) == 0
    printed = capsys.readouterr().out
    n_groups = int(fields(printed)["groups"].partition(",")[0])
    assert f"  ... and {n_groups - 20} more" in printed
    assert sum(line.startswith("  ") for line in printed.splitlines()) == 22
