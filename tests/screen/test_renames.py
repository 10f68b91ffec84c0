"""Spellings of a perturbation are merged on request only, and then at every door."""

import numpy as np
import pytest

import lazypert as lp
from lazypert.errors import ConfigError, LabelNotFoundError
from lazypert.screen.renames import rename_labels
from lazypert.screen.roles import Roles
from tests.support.screens import make_screen, write_screen

LABELS = ["ctrl", "ctrl ", "A", " A", "a", "B+A", "A +ctrl "]


def renamed(labels, **roles):
    codes, names = rename_labels(np.arange(len(labels)), np.array(sorted(labels)), Roles(**roles))
    return [str(names[code]) for code in codes]


@pytest.mark.parametrize(
    ("renames", "separator", "expected"),
    [
        (None, "+", LABELS),
        ("strip", None, ["ctrl", "ctrl", "A", "A", "a", "B+A", "A +ctrl"]),
        ("strip", "+", ["ctrl", "ctrl", "A", "A", "a", "B+A", "A+ctrl"]),
        ({"ctrl ": "ctrl", "a": "A"}, None, ["ctrl", "ctrl", "A", " A", "A", "B+A", "A +ctrl "]),
        ({"ctrl ": "ctrl", "a": "A"}, "+", ["ctrl", "ctrl", "A", " A", "A", "B+A", "A +ctrl"]),
        ({"B+A": "C", "A": "D"}, "+", ["ctrl", "ctrl ", "D", " A", "a", "C", "A +ctrl "]),
        ({"A+B": "C", "ctrl +A ": "D"}, "+", ["ctrl", "ctrl ", "A", " A", "a", "C", "D"]),
    ],
)
def test_names_of_labels(renames, separator, expected):
    found = renamed(LABELS, rename_perturbations=renames, separator=separator)
    assert dict(zip(sorted(LABELS), found, strict=True)) == dict(zip(LABELS, expected, strict=True))


@pytest.mark.parametrize(
    "value", [{}, {"a": ""}, {"": "a"}, {"a": 1}, "case", 3, ["a"], ("ab", "cd"), (1, 2), {1: "a"}]
)
def test_other_values_are_refused(value):
    with pytest.raises(ConfigError, match=r"^rename_perturbations: got .*expected a dictionary {label: name}"):
        Roles(rename_perturbations=value)


def test_a_label_has_one_name():
    pairs = (("b", "a"), ("a", "b"))
    assert Roles(rename_perturbations=pairs) == Roles(rename_perturbations=dict(pairs))
    with pytest.raises(ConfigError, match=r"^rename_perturbations: got .*expected one name for each label"):
        Roles(rename_perturbations=(("a", "b"), ("a", "c")))


def test_a_label_that_does_not_occur_is_refused():
    with pytest.raises(LabelNotFoundError, match=r"rename_perturbations: got 'ctrl  '.*Did you mean 'ctrl"):
        renamed(LABELS, rename_perturbations={"ctrl  ": "ctrl"})


def test_roles_without_it_are_saved_as_before():
    assert "rename_perturbations" not in Roles(pert_col="p").to_json()
    for renames in ("strip", {"b": "a", "a ": "a"}):
        roles = Roles(pert_col="p", rename_perturbations=renames)
        assert roles.to_json()["rename_perturbations"] == renames
        assert Roles.from_json(roles.to_json()) == roles


MERGED = {"control_pert": "ctrl", "separator": "+", "rename_perturbations": {"ctrl ": "ctrl", "a": "A"}}
EXPECTED = {"A": 3, "A+B": 1, "ctrl": 2}


class TestDoors:
    @pytest.fixture
    def path(self, tmp_path):
        labels = ["ctrl", "ctrl ", "A", "a", "B+a", "A+ctrl "]
        obs = {"perturbation": labels * 5, "cell_type": ["T"] * 30, "batch": ["b"] * 30}
        return write_screen(make_screen(obs, np.ones((30, 2)), genes=["A", "B"]), tmp_path / "s.h5ad")

    def check(self, groups):
        table = groups.table().set_index("perturbation")
        assert table["n_cells"].to_dict() == {label: 5 * n for label, n in EXPECTED.items()}
        assert table.index[table["is_control"]].tolist() == ["ctrl"]

    def test_conversion(self, path, tmp_path):
        store = lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation", cell_type_col="cell_type", **MERGED)
        ds = lp.open(store)
        self.check(ds.pert.groups)
        self.check(ds.isel(cell=slice(None, None, -1)).pert.groups)
        assert ds.pert.select(perturbation="A").sizes["cell"] == 15
        assert set(ds.perturbation.values) == {"ctrl", "ctrl ", "A", "a", "B+a", "A+ctrl "}, (
            "the column is as in the file"
        )
        assert not [line for line in ds.pert.store.attrs["warnings"] if "spelt in several ways" in line]
        config = lp.PerturbationPipelineConfig(sentence_size=2)
        for screen in (store, ds):
            self.check(lp.PerturbationPipeline(config).setup(screen).source.groups)
        as_in_file = ds.pert.regroup(rename_perturbations=None, control_pert=["ctrl", "ctrl "])
        assert as_in_file.labels["perturbation"].tolist() == ["A", "B+a", "a", "ctrl", "ctrl "]
        assert lp.verify(store) > 0

    def test_sources(self, path, tmp_path):
        plain = lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation", cell_type_col="cell_type")
        for place in (path, plain):
            config = lp.PerturbationSourceConfig(file_path=place, **MERGED)
            self.check(lp.PerturbationAnnDataSource(config).groups)
        stripped = lp.PerturbationSourceConfig(file_path=path, **MERGED | {"rename_perturbations": "strip"})
        groups = lp.PerturbationAnnDataSource(stripped).groups
        assert groups.labels["perturbation"].tolist() == ["A", "B+a", "a", "ctrl"]

    def test_a_misspelt_label(self, path, tmp_path):
        roles = MERGED | {"rename_perturbations": {"ctlr ": "ctrl"}}
        for door in (
            lambda: lp.convert(path, tmp_path / "t.zarr", pert_col="perturbation", **roles),
            lambda: lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=path, **roles)),
        ):
            with pytest.raises(LabelNotFoundError, match=r"rename_perturbations: got 'ctlr '.*Did you mean 'ctrl"):
                door()

    def test_datasets_with_names_of_their_own_are_reproduced(self, path, tmp_path):
        other = tmp_path / "other.h5ad"
        obs = {"perturbation": ["NT", "NT.", "A"] * 10, "cell_type": ["T"] * 30, "batch": ["b"] * 30}
        write_screen(make_screen(obs, np.ones((30, 2)), genes=["A", "B"]), other)
        (tmp_path / "e.toml").write_text(
            '[datasets]\none = { path = "s.h5ad", rename_perturbations = { "ctrl " = "ctrl", a = "A" } }\n'
            'two = { path = "other.h5ad", control_pert = "NT", rename_perturbations = { "NT." = "NT" } }\n'
            '[training]\none = "train"\ntwo = "train"\n'
        )
        config = lp.PerturbationPipelineConfig(control_pert="ctrl", separator="+", sentence_size=2)
        experiment = lp.load_experiment_config(tmp_path / "e.toml")
        result = lp.PerturbationPipeline(config).setup_experiment(experiment)
        table = result.source.groups.table().set_index("perturbation")
        assert table["n_cells"].to_dict() == {"A": 25, "A+B": 5, "NT": 20, "ctrl": 10}
        experiment.save_config(tmp_path / "again.toml")
        again = lp.load_experiment_config(tmp_path / "again.toml")
        assert [entry.roles for entry in again.datasets] == [entry.roles for entry in experiment.datasets]
        lp.save_run(tmp_path / "run.json", result, [])
        assert lp.load_run(tmp_path / "run.json").result.original_splits.digest == result.original_splits.digest
