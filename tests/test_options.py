"""Options have one spelling and one rule at every door: near matches are named, and a single string is one label."""

import pytest

import lazypert as lp
from lazypert.errors import ConfigError
from tests.support.stores import ROLES, converted


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("options"))[1]


DOORS = {
    "convert": lambda path: lp.convert(path, "x.zarr", control_part="NT"),
    "open": lambda path: lp.open(path, storage_option={}),
    "verify": lambda path: lp.verify(path, storage_option={}),
    "source config": lambda path: lp.PerturbationSourceConfig(file_path=path, control_part="NT"),
    "pipeline config": lambda path: lp.PerturbationPipelineConfig(control_part="NT"),
    "split config": lambda path: lp.RandomSplitterConfig(train_fraq=0.5),
    "loader config": lambda path: lp.LoaderConfig(layuot="csr"),
    "setup": lambda path: lp.PerturbationPipeline(lp.PerturbationPipelineConfig()).setup(path, split=None),
    "ds.pert.select": lambda path: lp.open(path).pert.select(perturbations="TP53"),
    "ds.pert.split": lambda path: lp.open(path).pert.split("random", train_fraq=0.5),
    "ds.pert.knockdown": lambda path: lp.open(path).pert.knockdown(min_cell=3),
    "ds.pert.match_controls": lambda path: lp.open(path).pert.match_controls(n_basal_sample=3),
    "ds.pert.source": lambda path: lp.open(path).pert.source(layers="raw"),
    "ds.pert.regroup": lambda path: lp.open(path).pert.regroup(pert_column="guide"),
    "ds.pert.to_anndata": lambda path: lp.open(path).pert.to_anndata(dtypes="f4"),
    "ds.pert.write_h5ad": lambda path: lp.open(path).pert.write_h5ad("a.h5ad", overwrit=True),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_misspelt_option_is_named_with_near_matches(store, door):
    with pytest.raises(ConfigError, match=r"^\w+: unknown option\. Did you mean '\w+'"):
        DOORS[door](store)


def test_a_single_string_is_one_label(store):
    ds = lp.open(store)
    for single, listed in (
        (lp.PerturbationSourceConfig(file_path=store, additional_obs="u1"), {"additional_obs": ("u1",)}),
        (lp.KnockdownFilterConfig(verdict_by="dataset"), {"verdict_by": ("dataset",)}),
        (lp.LoaderConfig(genes="gene1", extras="pert_emb", obs="u1"), {"genes": ("gene1",), "extras": ("pert_emb",)}),
        (lp.FewShotSplitterConfig(held_out_perturbations="TP53"), {"held_out_perturbations": ("TP53",)}),
        (lp.ZeroShotSplitterConfig(held_out_cell_types="Neuron"), {"held_out_cell_types": ("Neuron",)}),
        (lp.RandomSplitterConfig(stratify_by="batch", exclude_perturbations="KRAS"), {"stratify_by": ("batch",)}),
        (lp.HeldOutSplitterConfig(by="perturbation", test="TP53"), {"test": ("TP53",)}),
        (lp.CombinationSplitterConfig(separator="+", test="TP53"), {"test": ("TP53",)}),
    ):
        for name, value in listed.items():
            assert getattr(single, name) == value
    options = {"held_out_perturbations": "TP53", "train_frac": 0.8, "valid_frac": 0.2}
    assert (
        ds.pert.split("fewshot", **options).digest
        == ds.pert.split("fewshot", **options | {"held_out_perturbations": ("TP53",)}).digest
    )
    with pytest.raises(ConfigError, match=r"test: got 'TP53', expected labels, such as \(\('T cell', 'A'\),\)"):
        lp.HeldOutSplitterConfig(by=("cell_type", "perturbation"), test="TP53")


def test_a_conversion_without_controls_says_so(tmp_path, store, caplog):
    path = store.with_suffix(".h5ad")
    made = lp.convert(path, tmp_path / "t.zarr", pert_col="perturbation", progress=False)
    assert "no controls were named (control_pert or control_col)" in caplog.text
    assert any(line.startswith("no controls were named") for line in lp.open(made).pert.store.attrs["warnings"])
    caplog.clear()
    made = lp.convert(path, tmp_path / "u.zarr", progress=False, **ROLES)
    assert "no controls" not in caplog.text + str(lp.open(made).pert.store.attrs["warnings"])
