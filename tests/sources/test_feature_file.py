"""Features are read from a file by perturbation name; nothing is guessed, and no pickle is loaded."""

import numpy as np
import pytest

from lazypert.errors import ConfigError, LabelNotFoundError
from lazypert.sources.feature_file import read_feature_table

LABELS = np.array(["A", "B", "ctrl"])


def write(path, content):
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_text(content)
    return path


def read(path, content, labels=LABELS, control="ctrl"):
    return read_feature_table(write(path, content), labels, labels == control)


FILES = {
    "f.csv": "name,x,y\nB,3,4\nA,1,2\nunused,9,9\nctrl,5,6\n",
    "f.tsv": "name\tx\ty\nB\t3\t4\nctrl\t5\t6\nA\t1\t2\n",
    "f.npz": {"B": np.array([3, 4]), "A": np.array([[1.0], [2.0]]), "ctrl": np.array([5, 6], dtype="f4")},
}


@pytest.mark.parametrize("name", FILES)
def test_rows_are_matched_by_name(tmp_path, name):
    table = read(tmp_path / name, FILES[name])
    assert table.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert table.dtype == np.float32


def test_a_control_without_features_gets_zeros(tmp_path):
    assert read(tmp_path / "f.csv", "name,x\nA,1\nB,2\n").tolist() == [[1], [2], [0]]


def test_names_may_be_numbers(tmp_path):
    assert read(tmp_path / "f.csv", "name,x\n1,10\n2,20\n", np.array(["1", "2"])).tolist() == [[10], [20]]


MISSING = ["NA", "N/A", "null", "nan", "NaN", "None", "NULL", "n/a", "<NA>"]


@pytest.mark.parametrize("name", ["f.csv", "f.tsv", "f.npz"])
@pytest.mark.parametrize("has_corner", [True, False], ids=["named index", "unnamed index"])
def test_names_that_look_like_missing_values_are_names(tmp_path, name, has_corner):
    vectors = {label: np.array([i, 0.5]) for i, label in enumerate(MISSING)}
    separator = "\t" if name == "f.tsv" else ","
    header = separator.join(["name", "x", "y"][not has_corner :])
    lines = [header, *(separator.join([label, str(v[0]), str(v[1])]) for label, v in vectors.items())]
    content = vectors if name == "f.npz" else "\n".join(lines)
    labels = np.array(sorted(MISSING))
    expected = [vectors[label].tolist() for label in labels]
    assert read(tmp_path / name, content, labels).tolist() == expected


def test_names_stay_as_they_are_written(tmp_path):
    table = "name,x\n007,1\n7,2\n7.0,3\n1e3,4\nTrue,5\n"
    labels = np.array(["007", "1e3", "7", "7.0", "True"])
    assert read(tmp_path / "f.csv", table, labels).tolist() == [[1], [4], [2], [3], [5]]


def test_perturbations_without_features_are_named(tmp_path):
    with pytest.raises(LabelNotFoundError, match=r"no features for 2 of 3 perturbations: A, B"):
        read(tmp_path / "f.csv", "name,x\nC,1\n")


def test_only_five_missing_names_are_shown(tmp_path):
    labels = np.array([f"P{i}" for i in range(9)])
    with pytest.raises(LabelNotFoundError, match=r"9 of 9 perturbations: P0, P1, P2, P3, P4, \.\.\.\."):
        read(tmp_path / "f.csv", "name,x\nC,1\n", labels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.csv", "name,x\nA,one\nB,2\n", "not a table of numbers"),
        ("f.csv", "name,x,y\nA,1,2\nB,,3\n", "got nan in column 'x' of 'B'"),
        ("f.csv", "name,x,y\nA,1,NA\nB,2,3\n", "got nan in column 'y' of 'A'"),
        ("f.csv", "name,x\nA,1\nB,inf\n", "got inf in column 'x' of 'B'"),
        ("f.npz", {"A": np.ones(2), "B": np.array([1, np.nan])}, "got nan in column '1' of 'B'"),
        ("f.csv", "name,x\nA,1\nA,2\nB,3\n", "got 'A' 2 times"),
        ("f.csv", "name,x\nNA,1\nA,2\nB,3\nNA,1\n", "got 'NA' 2 times"),
        ("f.csv", "x\nA,1,2\nB,3,4\n", "do not match its header|cannot read"),
        ("f.csv", "", "cannot read"),
        ("f.npz", {"A": np.ones(2), "B": np.ones(3)}, "cannot use"),
        ("f.npz", {"A": np.array([{}], dtype=object), "B": np.ones(1)}, "cannot use"),
        ("f.pt", "", r"expected \.csv, \.tsv or \.npz"),
    ],
    ids=[
        "text",
        "empty cell",
        "NA as a number",
        "infinite",
        "NaN in npz",
        "repeated name",
        "repeated NA",
        "short header",
        "empty file",
        "unequal lengths",
        "pickle",
        "torch",
    ],
)
def test_a_bad_file_raises(tmp_path, name, content, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / name, content)


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        read_feature_table(tmp_path / "none.csv", LABELS, LABELS == "ctrl")
