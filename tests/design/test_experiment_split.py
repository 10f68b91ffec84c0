"""Every cell of an experiment has the split that cell-load's rules give its labels."""

import numpy as np
import pytest

from lazypert.design.experiment import FewshotEntry, ZeroshotEntry
from lazypert.design.experiment_split import assign_split, split_experiment
from lazypert.errors import ConfigError, LabelNotFoundError
from lazypert.screen.roles import Roles
from lazypert.splits.names import SPLITS
from tests.support.experiments import CELL_LOAD, config_of, load_experiment
from tests.support.screens import CONTROL, make_cells, random_cells

EXPERIMENT = config_of(
    "one",
    "two",
    training_datasets=("d1",),
    zeroshot=(ZeroshotEntry(dataset="d0", cell_type="T0", split="val"),),
    fewshot=(FewshotEntry(dataset="d1", cell_type="T1", test_perturbations=("P0", CONTROL)),),
)


@pytest.mark.parametrize(
    ("dataset", "cell_type", "perturbation", "expected"),
    [
        ("replogle", "k562", "AARS", "train"),
        ("replogle", "k562", "control", "train"),
        ("replogle", "jurkat", "AARS", "test"),
        ("replogle", "jurkat", "control", "test"),
        ("jurkat", "rpe1", "AARS", "valid"),
        ("jurkat", "rpe1", "control", "valid"),
        ("replogle", "rpe1", "AARS", "test"),
        ("replogle", "rpe1", "NUP107", "test"),
        ("replogle", "rpe1", "OTHER", "train"),
        ("replogle", "rpe1", "control", "train"),
        ("jurkat", "k562", "GENE2", "valid"),
        ("jurkat", "k562", "AARS", "train"),
    ],
)
def test_assign_split_in_the_example_of_cell_load(tmp_path, dataset, cell_type, perturbation, expected):
    config = load_experiment(tmp_path, CELL_LOAD)
    is_control = perturbation == "control"
    assert assign_split(config, dataset, cell_type, perturbation, is_control=is_control) == expected


def test_of_a_dataset_that_does_not_train_only_held_out_cells_are_used(tmp_path):
    config = load_experiment(
        tmp_path,
        '[datasets]\na = "x"\n[zeroshot]\n"a.z" = "test"\n"a.t" = "train"\n[fewshot."a.f"]\nval = ["P"]\n',
    )

    def split(cell_type, perturbation, *, is_control=False):
        return assign_split(config, "a", cell_type, perturbation, is_control=is_control)

    assert split("other", "P") is None
    assert split("other", "ctrl", is_control=True) is None
    assert (split("z", "P"), split("t", "P")) == ("test", "train")
    assert (split("f", "P"), split("f", "Q"), split("f", "ctrl", is_control=True)) == (
        "valid",
        "train",
        "train",
    )


def test_a_control_listed_in_fewshot_remains_a_control():
    entry = FewshotEntry(dataset="d0", cell_type="c", test_perturbations=("ctrl",))
    config = config_of("x", fewshot=(entry,))
    assert assign_split(config, "d0", "c", "ctrl", is_control=True) == "train"


def test_undeclared_datasets_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'd0'"):
        assign_split(config_of("x"), "d_0", "c", "P", is_control=False)


@pytest.mark.parametrize("seed", range(5))
def test_equals_assigning_cells_one_by_one(seed):
    cells = random_cells(200, seed, n_datasets=2, missing=0.1)
    splits = split_experiment(EXPERIMENT, cells.groups, {"d0": "d0", "d1": "d1"})
    expected = {name: [] for name in (*SPLITS, None)}
    for row, (cell_type, perturbation, dataset) in enumerate(
        zip(*(cells.frame[axis] for axis in ("cell_type", "perturbation", "dataset")), strict=True)
    ):
        if cell_type is not None and perturbation is not None:
            is_control = perturbation == CONTROL
            split = assign_split(EXPERIMENT, dataset, cell_type, perturbation, is_control=is_control)
            expected[split].append(row)
    assert {name: sorted(splits[name]) for name in SPLITS} == {name: expected[name] for name in SPLITS}


def test_files_belong_to_the_dataset_of_the_longest_name():
    cells = make_cells(
        perturbation=["P0", "P0", "P0", "P0", CONTROL],
        cell_type=["T1", "T1", "T1", "T0", "T0"],
        dataset=["d1/b", "d1/b/one", "d1_2", "d1/one", "d0"],
    )
    owners = {"d0": "d0", "d1": "d0", "d1/b": "d1", "d1_2": "d1"}
    splits = split_experiment(EXPERIMENT, cells.groups, owners)
    assert sorted(splits.test_indices) == [0, 1, 2]
    assert sorted(splits.valid_indices) == [3, 4]


def test_a_single_file_may_have_any_dataset_labels():
    cells = make_cells(perturbation=["P0", "P1"], cell_type=["T1", "T0"], dataset=["x", "y"], control=None)
    experiment = config_of("one", "two", fewshot=EXPERIMENT.fewshot[:0], training_datasets=("d1",))
    splits = split_experiment(experiment, cells.groups, {"d1": "d1"})
    assert np.asarray(splits.train_indices).tolist() == [1, 0]


def test_combinations_are_held_out_in_any_order_of_their_parts():
    roles = Roles(pert_col="perturbation", cell_type_col="cell_type", control_pert=CONTROL, separator="+")
    labels = ["B+A", "A+B", "A", "C", f"{CONTROL}+C", CONTROL]
    cells = make_cells(roles=roles, perturbation=labels, cell_type=["T0"] * 6, dataset=["d0"] * 6)
    entry = FewshotEntry(
        dataset="d0", cell_type="T0", val_perturbations=("B+A",), test_perturbations=(f"C+{CONTROL}", CONTROL)
    )
    splits = split_experiment(config_of("one", fewshot=(entry,)), cells.groups, {"d0": "d0"})
    assert {name: sorted(splits[name]) for name in SPLITS} == {"train": [2, 5], "valid": [0, 1], "test": [3, 4]}


@pytest.mark.parametrize("entry", ["zeroshot", "fewshot cell type", "val", "test"])
def test_misspelt_labels_raise_an_error(entry):
    cells = make_cells(perturbation=["P0", CONTROL], cell_type=["T0", "T0"], dataset=["d0", "d0"])
    held_out = {
        "zeroshot": {"zeroshot": (ZeroshotEntry(dataset="d0", cell_type="t0", split="test"),)},
        "fewshot cell type": {"fewshot": (FewshotEntry(dataset="d0", cell_type="t0"),)},
        "val": {"fewshot": (FewshotEntry(dataset="d0", cell_type="T0", val_perturbations=("p0",)),)},
        "test": {"fewshot": (FewshotEntry(dataset="d0", cell_type="T0", test_perturbations=("p0",)),)},
    }
    with pytest.raises(LabelNotFoundError, match="Did you mean"):
        split_experiment(config_of("one", **held_out[entry]), cells.groups, {"d0": "d0"})


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (
            {"zeroshot": (ZeroshotEntry(dataset="d0", cell_type="T1", split="test"),)},
            r"'d0.T1'.*dataset 'd0'",
        ),
        (
            {"fewshot": (FewshotEntry(dataset="d0", cell_type="T0", test_perturbations=("P1",)),)},
            r"\[fewshot\] 'd0.T0': got the perturbation 'P1'.*cell type 'T0' in dataset 'd0'",
        ),
        (
            {"fewshot": (FewshotEntry(dataset="d0", cell_type="T2", val_perturbations=("P0",)),)},
            r"got the perturbation 'P0', expected one of cell type 'T2'",
        ),
    ],
    ids=["cell type of another dataset", "perturbation of another dataset", "perturbation of another cell type"],
)
def test_labels_that_occur_elsewhere_only_would_hold_nothing_out(held_out, message):
    cells = make_cells(
        perturbation=["P0", "P1", "P1", CONTROL],
        cell_type=["T0", "T2", "T1", "T0"],
        dataset=["d0", "d0", "d1", "d0"],
    )
    with pytest.raises(LabelNotFoundError, match=message):
        split_experiment(config_of("one", "two", **held_out), cells.groups, {"d0": "d0", "d1": "d1"})
