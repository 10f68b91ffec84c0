"""Metadata of batches equals that of the file, in dtypes that JAX accepts."""

import jax
import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import ConfigError
from tests.support.loaders import loader_of
from tests.support.stores import screen, write


@pytest.fixture(scope="module")
def adata():
    made = screen(90)
    made.obs.loc[made.obs.index[5], "batch"] = np.nan
    return made


@pytest.fixture(scope="module")
def result(adata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("metadata")
    config = lp.PerturbationPipelineConfig(train_frac=1.0, valid_frac=0.0, sentence_size=4, sentences_per_batch=4)
    return lp.PerturbationPipeline(config).setup(write(adata, folder / "screen.h5ad"))


def cells_of(result, adata, **options):
    """Batches, each with the obs rows and names of its cells in the AnnData."""
    for batch in result.loader("train", **options):
        names = result.source.obs_names(np.asarray(batch.row))
        yield batch, adata.obs.loc[names], list(names)


@pytest.mark.parametrize("to", ["jax", "numpy"])
def test_extras_equal_the_labels_and_names_of_the_file(result, adata, to):
    source, extras = result.source, ("pert_emb", "cell_type_onehot", "batch_onehot", "barcode")
    for batch, obs, names in cells_of(result, adata, extras=extras, to=to):
        assert batch.barcodes() == names
        for field, axis in (("pert_emb", "perturbation"), ("cell_type_onehot", "cell_type"), ("batch_onehot", "batch")):
            found = getattr(batch, field)
            assert isinstance(found, jax.Array if to == "jax" else np.ndarray)
            assert found.dtype == np.float32
            labels = source.groups.labels[axis]
            expected = pd.get_dummies(pd.Categorical(obs[axis], categories=labels)).to_numpy()
            np.testing.assert_array_equal(found, expected)  # zeros for a missing label


def test_optional_fields_are_absent_by_default(result, adata):
    for batch, _, _ in cells_of(result, adata):
        assert batch.barcodes() == []
        assert batch.obs == {}
        assert batch.pert_emb is batch.cell_type_onehot is batch.batch_onehot is None


COLUMNS = ["ordered", "int_category", "holey_category", "u1", "f4", "f8", "flag", "maybe_int", "text", "maybe_text"]


def test_obs_columns_equal_those_of_the_file(result, adata):
    loader = result.loader("train", obs=COLUMNS, text_width=8)
    assert set(loader.obs_labels) == {"ordered", "holey_category"}
    for batch, obs, _ in cells_of(result, adata, obs=COLUMNS, text_width=8):
        assert sorted(batch.obs) == sorted(COLUMNS)
        for name, labels in loader.obs_labels.items():
            found = [labels[code] if code >= 0 else None for code in np.asarray(batch.obs[name]).tolist()]
            assert found == [None if pd.isna(value) else value for value in obs[name]]
        for name in ("u1", "f4", "flag"):
            np.testing.assert_array_equal(batch.obs[name], obs[name].to_numpy())
            assert batch.obs[name].dtype == obs[name].dtype
        for name in ("f8", "int_category", "maybe_int"):
            expected = obs[name].astype("Float64" if name == "maybe_int" else float).to_numpy(float, na_value=np.nan)
            np.testing.assert_allclose(np.asarray(batch.obs[name], dtype=float), expected, rtol=1e-6)
        for name in ("text", "maybe_text"):
            found = [bytes(row).rstrip(b"\0").decode() for row in np.asarray(batch.obs[name])]
            assert found == ["" if pd.isna(value) else value for value in obs[name]]


def test_texts_that_are_too_long_are_rejected(result):
    with pytest.raises(
        ConfigError, match=r"text_width: got 3, expected at least \d: barcode has a string of \d bytes.*Pass text_width"
    ):
        next(iter(result.loader("train", extras=("barcode",), text_width=3)))


def test_labels_are_the_union_over_screens(tmp_path):
    paths = []
    for seed, kinds in enumerate((["x", "y"], ["y", "z"])):
        made = screen(40, seed=seed)
        made.obs["kind"] = pd.Categorical(np.array(kinds)[np.arange(40) % 2])
        paths.append(write(made, tmp_path / f"{seed}.h5ad"))
    config = lp.PerturbationPipelineConfig(train_frac=1.0, valid_frac=0.0, sentence_size=4)
    result = lp.PerturbationPipeline(config).setup(paths)
    loader = result.loader("train", obs=("kind",))
    assert loader.obs_labels == {"kind": ["x", "y", "z"]}
    for batch in loader:
        rows = np.asarray(batch.row)
        found = [loader.obs_labels["kind"][code] for code in np.asarray(batch.obs["kind"])]
        assert found == list(result.source.read_obs("kind", rows))


def test_pert_emb_holds_the_features_given_for_perturbations(reference, tmp_path):
    labels = reference.source.get_pert_categories()
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(len(labels), 3)), index=labels)
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "features.csv")
    source = lp.PerturbationAnnDataSource(
        lp.PerturbationSourceConfig(file_path=reference.store, perturbation_features_file=tmp_path / "features.csv")
    )
    for batch in loader_of(source, extras=("pert_emb",)):
        expected = table.to_numpy(np.float32)[np.asarray(batch.pert_code)]
        np.testing.assert_array_equal(batch.pert_emb, expected)


def test_the_pipeline_takes_features_of_perturbations_whatever_their_names(tmp_path):
    adata = screen(120)
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str)
    labels = [label for label in adata.obs["perturbation"].unique() if label != "non-targeting"]
    adata.obs["perturbation"] = adata.obs["perturbation"].replace(dict(zip(labels, ["NA", "null"], strict=False)))
    path = write(adata, tmp_path / "s.h5ad")
    names = sorted(set(adata.obs["perturbation"]) - {"non-targeting"})
    table = pd.DataFrame(np.arange(2 * len(names)).reshape(-1, 2) + 0.5, index=names)
    table.to_csv(tmp_path / "features.csv")
    config = lp.PerturbationPipelineConfig(
        train_frac=1.0, valid_frac=0.0, sentence_size=4, perturbation_features_file=tmp_path / "features.csv"
    )
    result = lp.PerturbationPipeline(config).setup([path])
    loader = result.loader("train", extras=("pert_emb",))
    for batch in loader:
        label = result.source.get_pert_categories()[np.asarray(batch.pert_code)]
        expected = [table.loc[name] if name != "non-targeting" else [0, 0] for name in label]
        np.testing.assert_array_equal(batch.pert_emb, np.array(expected, "f4"))
    fingerprint = result.loader("train", extras=("pert_emb",)).fingerprint
    assert fingerprint == loader.fingerprint
    (table + 1).to_csv(tmp_path / "features.csv")
    changed = lp.PerturbationPipeline(config).setup([path]).loader("train", extras=("pert_emb",))
    assert changed.fingerprint["features"] != loader.fingerprint["features"]
