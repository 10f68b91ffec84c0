"""The pipeline end to end: the program in the README, experiments from TOML, and errors before any work."""

from dataclasses import fields

import numpy as np
import pytest

import lazypert as lp
from lazypert import PerturbationPipeline, PerturbationPipelineConfig
from lazypert.design.sampler_config import PerturbationSamplerConfig
from lazypert.errors import ConfigError, EmptyPoolError, LabelNotFoundError
from lazypert.loading.config import LoaderConfig
from lazypert.pipeline_result import PipelineLoaderOptions
from lazypert.simulate import reference_screen
from lazypert.splits.names import SPLITS
from tests.support.screens import CONTROL, in_store_order, make_screen, source_of, write_screen


def setup(reference, **options):
    return PerturbationPipeline(PerturbationPipelineConfig(**options)).setup(reference.store)


class TestProgram:
    def test_runs_end_to_end(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        reference_screen("screen.h5ad")
        from lazypert import PerturbationPipeline, PerturbationPipelineConfig

        pipeline = PerturbationPipeline(
            PerturbationPipelineConfig(
                split_mode="fewshot",
                held_out_perturbations=("BRCA1", "TP53"),
                mapping_strategy="random",
                enable_knockdown_filter=True,
                var_gene_col="gene_name",
            )
        )
        result = pipeline.setup(["screen.h5ad"])
        for batch_indices in result.train_sampler:
            elements = [result.get_element(int(result.train_indices[i])) for i in batch_indices]

        assert len(elements) == 56  # the largest groups have 56 training cells or fewer
        assert len({(e["cell_type_name"], e["pert_name"]) for e in elements}) == 1
        assert not {e["pert_name"] for e in elements} & {"BRCA1", "TP53"}
        for batch in result.loader("train", sentence_size=64, sentences_per_batch=8):
            assert batch.counts.shape == (512, 200)
            assert batch.controls.shape == (512, 1, 200)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["screen.h5ad", "screen.lazypert.zarr"]

    def test_elements_are_the_cells_of_the_file(self, reference):
        result = setup(reference)
        adata = in_store_order(result.source, reference.adata)
        rows = [0, 17, 899]
        for row in rows:
            element = result.get_element(row)
            assert element["counts"].tolist() == adata.X[row].toarray().ravel().tolist()
            assert element["pert_name"] == adata.obs["perturbation"].iloc[row]


class TestResult:
    @pytest.mark.parametrize(
        ("options", "sizes"),
        [
            ({}, (720, 90, 90)),
            ({"split_mode": "zeroshot", "held_out_cell_types": ("Neuron",)}, (533, 67, 300)),
            ({"split_mode": "fewshot", "held_out_perturbations": ("MYC", "EGFR")}, (550, 50, 300)),
        ],
        ids=["random", "zero-shot", "few-shot"],
    )
    def test_splits(self, reference, options, sizes):
        result = setup(reference, **options)
        assert (len(result.train_indices), len(result.valid_indices), len(result.test_indices)) == sizes
        assert result.filter_mask is None
        assert result.knockdown is None
        assert "train" in repr(result)

    def test_qc_removes_cells_from_the_splits(self, reference):
        options = {"split_mode": "fewshot", "held_out_perturbations": ("MYC",)}
        unfiltered = setup(reference, **options)
        result = setup(
            reference, enable_knockdown_filter=True, var_gene_col="gene_name", cell_residual_expression=0.2, **options
        )
        mask = lp.OnTargetKnockdownFilter(
            lp.KnockdownFilterConfig(var_gene_col="gene_name", cell_residual_expression=0.2)
        ).process(reference.source)
        assert (result.filter_mask == mask).all()
        assert 150 < mask.sum() < 900
        for name in SPLITS:
            rows = np.asarray(unfiltered.splits[name])
            assert np.asarray(result.splits[name]).tolist() == rows[mask[rows]].tolist()

    def test_qc_that_leaves_only_controls_to_train_on_is_an_error(self, reference):
        options = {"enable_knockdown_filter": True, "var_gene_col": "gene_name", "residual_expression": 0.001}
        with pytest.raises(ConfigError, match=r"none of the 600 .* 'train' .* 120 controls .*: 5 residual .* too high"):
            setup(reference, split_mode="random", **options)

    def test_qc_that_empties_another_split_is_a_warning(self, tmp_path):
        # Perturbation B, which is held out, does not lower its gene.
        labels = np.repeat([CONTROL, "A", "B"], 40)
        counts = np.full((120, 2), 8)
        counts[labels == "A", 0] = 0
        screen = make_screen(
            {"perturbation": labels.tolist(), "cell_type": ["T"] * 120, "batch": ["b"] * 120}, counts, genes=["A", "B"]
        )
        config = PerturbationPipelineConfig(
            split_mode="fewshot", held_out_perturbations=("B",), enable_knockdown_filter=True, min_cells=5
        )
        path = write_screen(screen, tmp_path / "a.h5ad")
        with pytest.warns(UserWarning, match=r"none of the 40 perturbed cells of split 'test' passes, so that nothing"):
            result = PerturbationPipeline(config).setup(path)
        assert len(result.test_indices) == 0
        assert len(result.train_indices) > 40

    @pytest.mark.parametrize("strategy", ["random", "batch"])
    def test_sampler_and_mapping(self, reference, strategy):
        options = {"mapping_strategy": strategy, "stratify_by": ("batch",)}  # each split gets controls of each batch
        result = setup(reference, sentence_size=20, sentences_per_batch=3, n_basal_samples=2, **options)
        source = result.source
        axes = ["cell_type", "pert"] + (["batch"] if strategy == "batch" else [])
        codes = np.stack([getattr(source, f"get_{axis}_codes")() for axis in axes], axis=1)
        batches = list(result.train_sampler)
        assert len(batches) == len(result.train_sampler)
        for batch in batches:
            for sentence in np.reshape(batch, (-1, 20)):
                assert len(np.unique(codes[result.train_indices[sentence]], axis=0)) == 1
        assert set(np.concatenate(batches)) == set(range(720))

        mapping = result.control_mapping
        perturbed = np.flatnonzero(~source.get_control_mask())
        assert mapping.shape == (750, 2)
        assert source.get_control_mask()[mapping].all()
        same = axes[:1] + axes[2:]
        for axis in same:
            codes = getattr(source, f"get_{axis}_codes")()
            assert (codes[mapping] == codes[perturbed][:, None]).all()
        split_of = np.empty(900, dtype=object)
        for name in SPLITS:
            split_of[np.asarray(result.splits[name])] = name
        assert (split_of[mapping] == split_of[perturbed][:, None]).all()

    def test_dimensions_count_genes_features_and_labels(self, reference):
        result = setup(reference, output_space="gene", hvg_col="highly_variable")
        assert result.get_var_dims() == {
            "n_genes": 200,
            "n_features": 50,
            "n_cells": 900,
            "n_perts": 6,
            "n_cell_types": 3,
            "n_batches": 2,
        }
        batch = next(iter(result.loader("valid", sentence_size=5)))
        assert batch.counts.shape == (5, 50)
        assert (np.asarray(batch.counts) == result.source.read_features(np.asarray(batch.row))).all()

    def test_embeddings_replace_counts(self, reference):
        result = setup(reference, output_space="embedding", embedding_key="X_pca")
        batch = next(iter(result.loader("train", sentence_size=5)))
        pca = in_store_order(result.source, reference.adata).obsm["X_pca"]
        assert (np.asarray(batch.counts) == pca[np.asarray(batch.row)]).all()

    def test_several_screens_share_labels_but_not_controls(self, tmp_path):
        screens = [
            make_screen(
                {
                    "perturbation": np.tile(["A", f"only{seed}", CONTROL], 20).tolist(),
                    "cell_type": ["T"] * 60,
                    "batch": np.repeat(["b1", "b2"], 30).tolist(),
                }
            )
            for seed in range(2)
        ]
        paths = [write_screen(s, tmp_path / f"s{i}.h5ad") for i, s in enumerate(screens)]
        config = PerturbationPipelineConfig(mapping_strategy="batch", sentence_size=4)
        result = PerturbationPipeline(config).setup(paths)
        assert result.source.get_pert_categories().tolist() == ["A", CONTROL, "only0", "only1"]
        assert sum(len(result.splits[name]) for name in SPLITS) == 120
        seen = []
        for batch in result.loader("train"):
            rows, controls = np.asarray(batch.row), np.asarray(batch.control_row)
            assert ((rows < 60)[:, None] == (controls < 60)).all()
            seen += rows[~np.asarray(batch.is_padding)].tolist()
        assert sorted(seen) == sorted(result.train_indices)

    def test_a_split_without_controls_raises_an_error(self, tmp_path):
        """The only control is in test, so that other splits have none."""
        screen = make_screen({"perturbation": ["A"] * 30 + [CONTROL], "cell_type": ["T"] * 31, "batch": ["b"] * 31})
        source = source_of(screen, tmp_path)
        for seed in range(50):
            result = PerturbationPipeline(PerturbationPipelineConfig(seed=seed)).setup(source.store.path)
            if CONTROL in {result.get_element(r)["pert_name"] for r in result.test_indices}:
                with pytest.raises(EmptyPoolError, match=r"\(T, A\)"):
                    result.loader("train")
                assert len(list(result.loader("test", sentence_size=2))) > 0
                with pytest.raises(EmptyPoolError, match=r"\(T, A\)"):
                    _ = result.control_mapping
                return
        raise AssertionError


class TestExperiment:
    TOML = """
        [datasets]
        main = "screen.zarr"
        [training]
        main = "train"
        [zeroshot]
        "main.Neuron" = "test"
        [fewshot."main.Microglia"]
        val = ["MYC"]
        test = ["KRAS", "TP53"]
    """

    def labels(self, result, split):
        rows = np.asarray(result.splits[split])
        source = result.source
        return list(
            zip(
                source.get_cell_type_categories()[source.get_cell_type_codes()[rows]].tolist(),
                source.get_pert_categories()[source.get_pert_codes()[rows]].tolist(),
                strict=True,
            )
        )

    def test_holds_out_what_the_file_says(self, reference):
        path = reference.store.with_name("experiment.toml")
        path.write_text(self.TOML)
        pipeline = PerturbationPipeline(PerturbationPipelineConfig(sentence_size=16))
        result = pipeline.setup_experiment(path)
        assert {c for c, _ in self.labels(result, "test")} == {"Neuron", "Microglia"}
        for split in SPLITS:
            for cell_type, pert in self.labels(result, split):
                held = {"MYC": "valid", "KRAS": "test", "TP53": "test"}
                expected = "test" if cell_type == "Neuron" else "train"
                if cell_type == "Microglia":
                    expected = held.get(pert, "train")
                assert split == expected
        assert sum(len(result.splits[s]) for s in SPLITS) == 900
        seen = [int(r) for b in result.loader("valid") for r, f in zip(b.row, b.is_padding, strict=True) if not f]
        assert sorted(seen) == sorted(result.valid_indices)
        from_config = pipeline.setup_experiment(lp.load_experiment_config(path))
        assert np.asarray(from_config.train_indices).tolist() == np.asarray(result.train_indices).tolist()

    def test_datasets_may_be_several_files_or_stores_of_several_files(self, tmp_path):
        """Dataset `b` is two files, `c` a store made of two files; `a` comes first and holds out T."""
        columns = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch"}
        obs = {"perturbation": ["A", CONTROL] * 3, "cell_type": ["T"] * 4 + ["U"] * 2, "batch": ["b"] * 6}
        files = {}
        for name in ("a", "b/one", "b/two", "c1", "c2"):
            files[name] = write_screen(make_screen(obs), tmp_path / f"{name}.h5ad")
        lp.convert([files["c1"], files["c2"]], tmp_path / "c.zarr", control_pert=CONTROL, **columns)
        (tmp_path / "e.toml").write_text(
            '[datasets]\na = "a.h5ad"\nb = "b"\nc = "c.zarr"\n[training]\nb = "train"\nc = "train"\n'
            '[zeroshot]\n"a.T" = "test"\n"b.U" = "val"\n'
        )
        result = PerturbationPipeline(PerturbationPipelineConfig()).setup_experiment(tmp_path / "e.toml")
        assert result.source.n_rows == 30

        def rows(split):
            return np.asarray(result.splits[split])

        dataset = np.repeat(["a", "b", "b", "c", "c"], 6)
        cell_type = result.source.get_cell_type_categories()[result.source.get_cell_type_codes()]
        contents = {split: set(zip(dataset[rows(split)], cell_type[rows(split)], strict=True)) for split in SPLITS}
        assert contents == {"train": {("b", "T"), ("c", "T"), ("c", "U")}, "valid": {("b", "U")}, "test": {("a", "T")}}
        assert [len(rows(split)) for split in SPLITS] == [8 + 12, 4, 4]


class TestConfig:
    @pytest.mark.parametrize(
        ("config", "renamed"),
        [
            (PerturbationPipelineConfig().source_config("x"), {}),
            (PerturbationPipelineConfig().filter_config(), {}),
            (PerturbationPipelineConfig().mapping_config(), {"strategy": "mapping_strategy"}),
            (PerturbationPipelineConfig().sampler_config(), {}),
            (PerturbationPipelineConfig().splitter().config, {}),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_defaults_equal_those_of_the_components(self, config, renamed):
        pipeline = {field.name: field for field in fields(PerturbationPipelineConfig)}
        shared = [field for field in fields(config) if renamed.get(field.name, field.name) in pipeline]
        assert len(shared) >= 3
        for field in shared:
            own = pipeline[renamed.get(field.name, field.name)]
            assert own.default == field.default == getattr(config, field.name)
            assert own.type == field.type

    def test_options_reach_their_components(self):
        config = PerturbationPipelineConfig(
            pert_col="guide",
            layer="counts",
            seed=7,
            mapping_strategy="batch",
            n_basal_samples=3,
            sentence_size=8,
            split_mode="zeroshot",
            held_out_cell_types=("T",),
            train_frac=0.5,
            min_cells=4,
        )
        source, knockdown = config.source_config("x"), config.filter_config()
        mapping, sampler, splits = config.mapping_config(), config.sampler_config(), config.splitter().config
        assert (source.file_path, source.pert_col, source.layer, source.seed) == ("x", "guide", "counts", 7)
        assert (knockdown.layer, knockdown.min_cells) == ("counts", 4)
        assert (mapping.strategy, mapping.n_basal_samples, mapping.seed) == ("batch", 3, 7)
        assert (sampler.sentence_size, sampler.seed) == (8, 7)
        assert splits == lp.ZeroShotSplitterConfig(held_out_cell_types=("T",), train_frac=0.5, seed=7)

    def test_repr_shows_what_differs_from_the_defaults(self):
        config = PerturbationPipelineConfig(split_mode="fewshot", held_out_perturbations=("A",), layer="counts")
        assert repr(PerturbationPipeline(config)) == (
            "PerturbationPipeline(PerturbationPipelineConfig("
            "layer='counts', split_mode='fewshot', held_out_perturbations=('A',)))"
        )


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"split_mode": "few-shot"}, "split_mode: got 'few-shot'"),
            ({"split_mode": "fewshot"}, "held_out_perturbations: got"),
            ({"split_mode": "zeroshot"}, "held_out_cell_types: got"),
            ({"split_mode": "zeroshot", "held_out_cell_types": {"Neuron"}}, "held_out_cell_types: got {'Neuron'}"),
            ({"held_out_perturbations": ("A",)}, "held_out_perturbations: got \\('A',\\) with mode 'random'"),
            (
                {"split_mode": "fewshot", "held_out_perturbations": ("A",), "held_out_cell_types": ("T",)},
                "held_out_cell_types",
            ),
            ({"mapping_strategy": "nearest"}, "strategy: got 'nearest'"),
            ({"mapping_strategy": "batch", "batch_col": None}, "batch_col=None"),
            ({"n_basal_samples": 0}, "n_basal_samples: got 0"),
            ({"sentence_size": 0}, "sentence_size: got 0"),
            ({"sentences_per_batch": 0}, "sentences_per_batch: got 0"),
            ({"train_frac": 0.9, "valid_frac": 0.2}, "expected at most 1"),
            ({"train_frac": -1}, "train_frac: got -1"),
            ({"seed": -1}, "seed: got -1"),
            ({"output_space": "gene"}, "hvg_col: got None"),
            ({"output_space": "embedding"}, "embedding_key: got None"),
            ({"output_space": "genes"}, "output_space: got 'genes'"),
            ({"residual_expression": 2}, "residual_expression: got 2"),
            ({"cell_residual_expression": 0}, "cell_residual_expression: got 0"),
            ({"min_cells": 0}, "min_cells: got 0"),
            ({"control_match": "donor"}, "control_match: got 'donor'"),
            ({"join": "left"}, "join: got 'left'"),
            ({"memory_limit": "lots"}, "got 'lots'"),
            ({"additional_obs": ("x", "x")}, "each column once"),
        ],
        ids=lambda value: "" if isinstance(value, str) else "+".join(f"{k}={v}" for k, v in value.items()),
    )
    def test_are_raised_on_construction_of_the_config(self, options, message):
        with pytest.raises(ConfigError, match=message):
            PerturbationPipelineConfig(**options)

    def test_options_are_keyword_only_and_frozen(self):
        with pytest.raises(TypeError):
            PerturbationPipelineConfig("perturbation")
        with pytest.raises(AttributeError):
            PerturbationPipelineConfig().seed = 3

    def test_an_empty_list_of_files(self):
        with pytest.raises(ConfigError, match="file_paths: got an empty list"):
            PerturbationPipeline(PerturbationPipelineConfig()).setup([])

    @pytest.mark.parametrize("paths", [None, 5, [5], [["a.h5ad"]]])
    def test_values_that_are_not_paths(self, paths):
        with pytest.raises(ConfigError, match=r"file_paths: got .*, expected paths of \.h5ad files or stores"):
            PerturbationPipeline(PerturbationPipelineConfig()).setup(paths)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"shuffle": "no"}, "shuffle: got 'no', expected True or False"),
            ({"drop_last": "yes"}, "drop_last: got 'yes'"),
            ({"weights": [1, 2]}, "weights: got"),
            ({"weights": {"MYC": "x"}}, r"weights\['MYC'\]: got 'x'"),
            ({"sentence_size": 8.0}, "sentence_size: got 8.0"),
        ],
    )
    def test_invalid_options_of_loaders(self, reference, options, message):
        with pytest.raises(ConfigError, match=message):
            setup(reference).loader("train", **options)

    def test_labels_that_do_not_occur(self, reference):
        with pytest.raises(LabelNotFoundError, match="Did you mean 'BRCA1'"):
            setup(reference, split_mode="fewshot", held_out_perturbations=("BRCA2",))
        with pytest.raises(LabelNotFoundError, match="'ctrl'"):
            setup(reference, control_pert="ctrl")


def test_loader_options_are_the_fields_of_their_configs():
    expected = {field.name for config in (PerturbationSamplerConfig, LoaderConfig) for field in fields(config)}
    assert set(PipelineLoaderOptions.__annotations__) == expected
