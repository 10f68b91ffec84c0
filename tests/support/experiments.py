"""Experiments in cell-load's schema, for tests."""

from lazypert.design.experiment import DatasetEntry, ExperimentConfig, load_experiment_config

# The example in the README of cell-load, with other paths.
CELL_LOAD = """
[datasets]
replogle = "replogle_dataset/"  # ADDS ALL h5 or h5ad files in this folder to training
jurkat = "/data/jurkat_dataset/"

[training]
replogle = "train"
jurkat = "train"

[zeroshot]
"replogle.jurkat" = "test"
"jurkat.rpe1" = "val"

[fewshot]

[fewshot."replogle.rpe1"]
val = ["AARS"]
test = ["AARS", "NUP107", "RPUSD4"]  # can overlap with val

[fewshot."jurkat.k562"]
val = ["GENE1", "GENE2"]
test = ["GENE3", "GENE4"]
"""


def load_experiment(tmp_path, text):
    file = tmp_path / "experiment.toml"
    file.write_text(text, encoding="utf-8")
    return load_experiment_config(file)


def config_of(*paths, **options):
    datasets = tuple(DatasetEntry(name=f"d{i}", path=str(path)) for i, path in enumerate(paths))
    return ExperimentConfig(datasets=datasets, **options)
