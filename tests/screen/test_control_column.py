"""A boolean column marks controls; what it marks are labels."""

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import ColumnNotFoundError, ConfigError
from lazypert.screen.control_column import marked_labels, marks_of
from tests.support.screens import make_screen, write_screen

LABELS = ["NT1", "NT2", "A", "B"] * 5
IS_CONTROL = np.array([label.startswith("NT") for label in LABELS])
COLUMNS = {
    "bool": IS_CONTROL,
    "numbers": IS_CONTROL.astype(int),
    "floats": IS_CONTROL.astype(float),
    "text": pd.Categorical(IS_CONTROL.astype(str)),
    "nullable": pd.array(IS_CONTROL, dtype="boolean"),
}


@pytest.fixture
def screen(tmp_path):
    def make(values, labels=LABELS):
        adata = make_screen({"perturbation": labels, "cell_type": ["T"] * len(labels)})
        adata.obs["is_control"] = values
        return write_screen(adata, tmp_path / "s.h5ad")

    return make


@pytest.mark.parametrize("kind", COLUMNS)
def test_marked_cells_are_controls(screen, tmp_path, kind):
    path = screen(COLUMNS[kind])
    store = lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation", control_col="is_control")
    assert lp.open(store).pert.store.roles.controls == ("NT1", "NT2")
    config = lp.PerturbationPipelineConfig(control_col="is_control", batch_col=None, sentence_size=2)
    for file in (path, store):
        source = lp.PerturbationPipeline(config).setup(file).source
        names = source.get_pert_categories()[source.get_pert_codes()]
        assert names[source.get_control_mask()].tolist().count("NT1") == 5
        assert set(names[source.get_control_mask()]) == {"NT1", "NT2"}


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([True, False] * 10, ["A"] * 20, "marks 10 of 20 cells of 'A' as controls"),
        ([False] * 20, LABELS, "which marks no cell"),
        (
            IS_CONTROL,
            [None if label == "NT1" else label for label in LABELS],
            "marks 5 cells without a perturbation label",
        ),
        (["yes", "no"] * 10, LABELS, "with values such as"),
        (pd.array([None, True] * 10, dtype="boolean"), LABELS, "with 10 missing values"),
    ],
)
def test_columns_that_do_not_mark_labels_are_refused(screen, tmp_path, values, labels, message):
    path = screen(values, labels)
    with pytest.raises(ConfigError, match=f"control_col: got obs column 'is_control'.*{message}"):
        lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation", control_col="is_control")
    assert not list(tmp_path.glob("*.zarr*"))


@pytest.mark.parametrize("options", [{"control_pert": "NT1", "pert_col": "perturbation"}, {}])
def test_it_takes_the_place_of_the_labels(screen, tmp_path, options):
    with pytest.raises(ConfigError, match="expected it in place of control_pert and together with pert_col"):
        lp.convert(screen(IS_CONTROL), tmp_path / "s.zarr", control_col="is_control", **options)


def test_a_missing_column_is_named(screen, tmp_path):
    with pytest.raises(ColumnNotFoundError, match=r"control_col: got 'is_ctrl'.*Did you mean 'is_control'"):
        lp.convert(screen(IS_CONTROL), tmp_path / "s.zarr", pert_col="perturbation", control_col="is_ctrl")


def test_codes_and_marks_of_a_small_column():
    codes, labels = np.array([0, 1, -1, 1]), np.array(["A", "NT"])
    assert marked_labels("c", codes, labels, marks_of("c", [False, True, False, True])) == ("NT",)
