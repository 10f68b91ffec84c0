"""Odd labels go through conversion, groups, splits, quality control and batches as what they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import LabelNotFoundError
from tests.support.screens import make_screen, write_screen

N = 4
"""Cells of each label."""


class Case(NamedTuple):
    """Labels in the file, the controls among them, and the groups that they are expected to form."""

    labels: Any
    control: Any
    groups: dict[str, int]
    controls: tuple[str, ...]
    separator: str | None = None


def same(labels, control, *, separator=None):
    """A case in which every label is a group of its own."""
    controls = (control,) if isinstance(control, str) else tuple(control)
    return Case(labels, control, {str(label): N for label in labels}, controls, separator)


NAN = float("nan")
CASES = {
    "plain": same(["A", "B", "ctrl"], "ctrl"),
    "one perturbation": same(["A", "ctrl"], "ctrl"),
    "two controls": same(["A", "NT", "safe"], ("NT", "safe")),
    "list of controls": Case(["A", "NT", "safe"], ["NT", "safe"], {"A": N, "NT": N, "safe": N}, ("NT", "safe")),
    "pattern": Case(
        ["A", "NT-1", "NT-22", "NT"], "NT*", {"A": N, "NT-1": N, "NT-22": N, "NT": N}, ("NT-1", "NT-22", "NT")
    ),
    "one character": Case(["A", "NT1", "NT22"], "NT?", {"A": N, "NT1": N, "NT22": N}, ("NT1",)),
    "pattern and label": Case(["A", "x-1", "ctrl"], ("x*", "ctrl"), {"A": N, "x-1": N, "ctrl": N}, ("x-1", "ctrl")),
    "brackets are no pattern": same(["A[1]", "ctrl[2]"], "ctrl[2]"),
    "integers": Case([1, 2, 0], 0, {"1": N, "2": N, "0": N}, ("0",)),
    "integer control as text": Case([1, 2, 0], "0", {"1": N, "2": N, "0": N}, ("0",)),
    "whole floats": Case([1.0, 2.0, 0.0], 0, {"1": N, "2": N, "0": N}, ("0",)),
    "fractions": Case([0.5, 1.0, 0.0], 0.0, {"0.5": N, "1": N, "0": N}, ("0",)),
    "large floats": Case([1e6, 1e7, 0.0], 0, {"1000000": N, "10000000": N, "0": N}, ("0",)),
    "negative": Case([-1, 1, 0], 0, {"-1": N, "1": N, "0": N}, ("0",)),
    "booleans": Case([True, False], False, {"True": N, "False": N}, ("False",)),
    "missing": Case(["A", None, "ctrl"], "ctrl", {"A": N, "ctrl": N}, ("ctrl",)),
    "missing numbers": Case([1.0, NAN, 0.0], 0, {"1": N, "0": N}, ("0",)),
    "text nan": same(["A", "nan", "ctrl"], "ctrl"),
    "text NA and None": same(["NA", "None", "null", "ctrl"], "ctrl"),
    "nan is the control": same(["A", "nan"], "nan"),
    "blanks around": same(["A ", " A", "A", " ctrl "], " ctrl "),
    "blanks inside": same(["drug A 10 uM", "no drug"], "no drug"),
    "case": same(["a", "A", "ctrl"], "ctrl"),
    "tab and newline": same(["A\tB", "A\nB", "ctrl"], "ctrl"),
    "slashes": same(["AAV/PBS 1:1", "../A", "a\\b", "ctrl"], "ctrl"),
    "accents": same(["\u00e9", "e\u0301", "ü", "Ωmega", "ctrl"], "ctrl"),
    "scripts": same(["遺伝子", "ген", "جين", "対照"], "対照"),
    "emoji": same(["🧬", "🧪", "ctrl"], "ctrl"),
    "quotes": same(["5'-UTR", 'say "A"', "ctrl"], "ctrl"),
    "markup": same(["<b>A</b>", "A&B", "ctrl"], "ctrl"),
    "comma and semicolon": same(["A,B", "A;B", "ctrl"], "ctrl"),
    "long": same(["A" * 1000, "B" * 999, "ctrl"], "ctrl"),
    "one long among many": same([f"g{i}" for i in range(60)] + ["x" * 100_000, "ctrl"], "ctrl"),
    "many": same([f"g{i}" for i in range(60)] + ["ctrl"], "ctrl"),
    "combination without a separator": same(["A+B", "B+A", "A", "ctrl"], "ctrl"),
    "combination": Case(["A+B", "B+A", "A", "ctrl"], "ctrl", {"A+B": 2 * N, "A": N, "ctrl": N}, ("ctrl",), "+"),
    "combination with the control": Case(
        ["A+ctrl", "ctrl+A", "A", "ctrl", "ctrl+ctrl"], "ctrl", {"A": 3 * N, "ctrl": 2 * N}, ("ctrl",), "+"
    ),
    "three parts": Case(["C_A_B", "B_C_A", "NT"], "NT", {"A_B_C": 2 * N, "NT": N}, ("NT",), "_"),
    "repeated part": Case(["A+A", "A", "NT"], "NT", {"A": 2 * N, "NT": N}, ("NT",), "+"),
    "longer separator": Case(["B--A", "A--B", "A-B", "NT"], "NT", {"A--B": 2 * N, "A-B": N, "NT": N}, ("NT",), "--"),
    "controls of several kinds": Case(
        ["A+NT1", "NT2+A", "NT1+NT2", "NT1"], ("NT1", "NT2"), {"A": 2 * N, "NT1": 2 * N}, ("NT1",), "+"
    ),
}


# At least one label of each kind.
QUICK = {
    "plain", "two controls", "pattern", "pattern and label", "integers", "fractions", "negative", "booleans", "missing",
    "text nan", "nan is the control", "blanks around", "case", "slashes", "accents", "comma and semicolon",
    "one long among many", "combination without a separator", "combination with the control", "three parts",
    "controls of several kinds",
}  # fmt: skip


@pytest.fixture(params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES])
def case(request):
    return CASES[request.param]


@pytest.fixture
def screen(case, tmp_path):
    labels = list(case.labels)
    column = np.repeat(np.array(labels, dtype=object), N)
    parts = [part for label in case.groups if case.separator for part in str(label).split(case.separator)]
    genes = list(dict.fromkeys([*map(str, case.groups), *parts]))
    counts = np.random.default_rng(0).poisson(5.0, (len(column), len(genes)))
    adata = make_screen({"perturbation": column.tolist(), "cell_type": ["T"] * len(column)}, counts, genes=genes)
    if all(isinstance(label, bool) for label in labels):
        adata.obs["perturbation"] = column.astype(bool)
    elif all(isinstance(label, int | float) for label in labels):
        adata.obs["perturbation"] = column.astype(float if any(isinstance(x, float) for x in labels) else int)
    else:
        adata.obs["perturbation"] = pd.Categorical([None if pd.isna(x) else str(x) for x in column])
    return write_screen(adata, tmp_path / "screen.h5ad")


def test_odd_labels_survive_every_step(case, screen, tmp_path):
    options = {"control_pert": case.control, "separator": case.separator, "cell_type_col": "cell_type"}
    store = lp.convert(screen, tmp_path / "s.zarr", pert_col="perturbation", **options)
    ds = lp.open(store)
    table = ds.pert.table().set_index("perturbation")
    assert table["n_cells"].to_dict() == case.groups
    found_controls = set(case.controls) & set(case.groups)
    assert set(table.index[table["is_control"]]) == found_controls

    for label, n in case.groups.items():
        assert ds.pert.select(perturbation=label).sizes["cell"] == n

    n_cells = sum(case.groups.values())
    config = lp.PerturbationPipelineConfig(**options, batch_col=None, train_frac=1.0, valid_frac=0.0, sentence_size=2)
    result = lp.PerturbationPipeline(config).setup(store)
    assert len(result.train_indices) == n_cells

    delivered = {}
    loader = result.loader("train", to="numpy", threads=1)
    for batch in loader:
        for code, is_padding in zip(batch.pert_code, batch.is_padding, strict=True):
            name = str(result.source.get_pert_categories()[code])
            delivered[name] = delivered.get(name, 0) + (not is_padding)
    assert delivered == case.groups
    quality = ds.pert.knockdown(min_cells=1)
    assert set(quality.table["perturbation"]) == set(case.groups) - found_controls


@pytest.mark.parametrize(
    ("control", "message"),
    [("Ctrl", r"got 'Ctrl'.*Did you mean 'ctrl'"), (("ctrl", "NT"), "got 'NT'"), ("x*", r"'x\*', expected a pattern")],
)
def test_controls_that_do_not_occur_are_refused(tmp_path, control, message):
    adata = make_screen({"perturbation": ["A", "ctrl"] * 5}, np.ones((10, 2)))
    path = write_screen(adata, tmp_path / "s.h5ad")
    with pytest.raises(LabelNotFoundError, match=message):
        lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation", control_pert=control)
    assert not list(tmp_path.glob("*.zarr*"))


class TestControlsOfCombinations:
    """A control label may occur as a part only; one that occurs nowhere is refused at every door."""

    LABELS = ("NT", "A", "A+ctrl", "B+A", "NT")

    @pytest.fixture
    def path(self, tmp_path):
        obs = {"perturbation": [*self.LABELS] * 4, "cell_type": ["T"] * 20, "batch": ["b"] * 20}
        return write_screen(make_screen(obs, np.ones((20, 2))), tmp_path / "s.h5ad")

    def test_parts_are_enough(self, path, tmp_path):
        roles = {"pert_col": "perturbation", "control_pert": ("NT", "ctrl"), "separator": "+"}
        store = lp.convert(path, tmp_path / "s.zarr", **roles)
        for place in (path, store):
            source = lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=place, **roles))
            assert source.groups.control_parts == ("ctrl",)
            assert source.get_pert_categories().tolist() == ["A", "A+B", "NT"]
        for result in (lp.open(store), lp.open(store).isel(cell=slice(3, 17))):
            result.pert.source()
            config = lp.PerturbationPipelineConfig(sentence_size=2)
            assert lp.PerturbationPipeline(config).setup(result).source.groups.control_parts == ("ctrl",)
        regrouped = lp.open(store).pert.regroup(control_pert=["NT", "ct*"])
        assert regrouped.control_parts == ("ctrl",)

    def test_a_misspelt_label_is_refused(self, path, tmp_path):
        roles = {"pert_col": "perturbation", "control_pert": ("NT", "ctrI"), "separator": "+"}
        store = lp.convert(path, tmp_path / "s.zarr", **roles | {"control_pert": ("NT", "ctrl")})
        doors = {
            "convert": lambda: lp.convert(path, tmp_path / "other.zarr", **roles),
            "file": lambda: lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=path, **roles)),
            "store": lambda: lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=store, **roles)),
            "ds.pert.source": lambda: lp.open(store).pert.source(control_pert=("NT", "ctrI")),
            "ds.pert.regroup": lambda: lp.open(store).pert.regroup(control_pert=("NT", "ctrI")),
            "pipeline": lambda: lp.PerturbationPipeline(lp.PerturbationPipelineConfig(**roles)).setup(store),
            "two screens": lambda: lp.PerturbationPipeline(lp.PerturbationPipelineConfig(**roles)).setup([store, path]),
        }
        for name, door in doors.items():
            with pytest.raises(LabelNotFoundError, match=r"control_pert: got 'ctrI', expected a label"):
                print(name, door())

    def test_only_parts_are_no_cells(self, path, tmp_path):
        roles = {"pert_col": "perturbation", "control_pert": "ctrl", "separator": "+"}
        store = lp.convert(path, tmp_path / "s.zarr", **roles)
        with pytest.raises(LabelNotFoundError, match=r"control_pert: got 'ctrl', expected a label"):
            lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=store, **roles))
