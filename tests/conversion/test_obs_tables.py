"""Tables of obs columns: what is read, stacked and refused."""

import numpy as np
import pandas as pd
import pytest

from lazypert.conversion.obs_tables import read_obs_tables, rows_of_cells
from lazypert.conversion.table_columns import nullable, take_rows
from lazypert.errors import ConfigError, LazypertError, SourceFormatError, SourceMissingError

CALLS = "cell_barcode,num_features,feature_call,num_umis\nA-1,1,g1,12\nB-1,2,g1|g2,3|40\nC-1,1,g1,7\nD-1,1,None,9\n"


def read(value):
    (table,) = read_obs_tables("obs", value)
    return table


@pytest.fixture
def calls(tmp_path):
    path = tmp_path / "protospacer_calls_per_cell.csv"
    path.write_text(CALLS)
    return path


def test_guide_calls_of_cell_ranger(calls):
    frame = read(calls).frame
    assert list(frame.index) == ["A-1", "B-1", "C-1", "D-1"]
    assert list(frame) == ["num_features", "feature_call", "num_umis"]
    assert frame["num_features"].dtype == np.int64
    assert list(frame["feature_call"]) == ["g1", "g1|g2", "g1", "None"]
    assert list(frame["num_umis"]) == ["12", "3|40", "7", "9"]


def test_numbers_of_umis_are_text_even_if_no_cell_has_two_guides(calls):
    calls.write_text("cell_barcode,num_features,feature_call,num_umis\nA-1,1,g1,12\nB-1,1,g2,3\n")
    assert list(read(calls).frame["num_umis"]) == ["12", "3"]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".parquet"])
def test_every_kind_of_file(tmp_path, suffix):
    frame = pd.DataFrame(
        {"guide": ["x", "y", "x"], "umis": [3, 4, 5], "ok": [True, False, True]}, index=["1", "2", "3"]
    )
    path = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="," if "csv" in suffix else "\t")
    found = read(str(path)).frame
    assert list(found.index) == ["1", "2", "3"]
    assert [list(found[name]) for name in frame] == [list(frame[name]) for name in frame]
    assert found["guide"].dtype == "category"


def test_barcodes_are_found_in_a_column_or_the_index():
    frame = pd.DataFrame({"x": [1, 2], "cell_barcode": ["A", "B"]})
    assert list(read(frame).frame.index) == ["A", "B"]
    assert list(read(frame.set_index("cell_barcode")).frame.index) == ["A", "B"]
    assert list(read(frame.drop(columns="cell_barcode").set_axis(["A", "B"])).frame.index) == ["A", "B"]
    assert list(read(frame.set_axis([3, 7])).frame.index) == ["A", "B"]  # as of selected rows


def test_an_index_of_text_is_the_barcodes_whatever_the_columns():
    frame = pd.DataFrame({"barcode": ["A", "A"], "cell": [1, 2]}, index=["A-1", "A-2"])
    found = read(frame).frame
    assert list(found.index) == ["A-1", "A-2"]
    assert list(found) == ["barcode", "cell"]


def test_tables_with_the_same_columns_are_stacked():
    one = pd.DataFrame({"guide": ["x", "x"], "n": [1, 2]}, index=["A", "B"])
    two = pd.DataFrame({"n": [3], "guide": ["y"]}, index=["C"])
    other = pd.DataFrame({"score": [0.5]}, index=["A"])
    stacked, alone = read_obs_tables("obs", [one, other, two])
    assert list(stacked.frame.index) == ["A", "B", "C"]
    assert list(stacked.frame["guide"]) == ["x", "x", "y"]
    assert list(stacked.frame["n"]) == [1, 2, 3]
    assert list(alone.frame) == ["score"]


@pytest.mark.parametrize("dtype", ["i8", "u2", "f4", "bool", "Int16", "boolean", "text", "category"])
def test_cells_without_a_row_get_missing_values(dtype):
    values = {"text": ["a", "b"], "category": pd.Categorical(["a", "b"])}.get(dtype)
    values = np.array([1, 0]).astype(dtype) if values is None and dtype[0].islower() and dtype != "boolean" else values
    values = pd.array([True, False] if dtype == "boolean" else [1, 0], dtype=dtype) if values is None else values
    table = read(pd.DataFrame({"x": values}, index=["A", "B"]))
    rows = rows_of_cells(table, np.array(["B", "no", "A", "B"], dtype=object))
    assert rows.tolist() == [1, -1, 0, 1]
    found = pd.Series(take_rows(nullable(table.frame)["x"], rows))
    assert found.isna().tolist() == [False, True, False, False]
    assert [found[2], found[0]] == list(values)
    assert list(take_rows(table.frame["x"], rows[[0, 2]])) == [values[1], values[0]]


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (3, ConfigError, "got int, expected the path"),
        ([], ConfigError, "empty list"),
        ("missing.csv", SourceMissingError, "there is no file"),
        ("table.xlsx", ConfigError, "ends with"),
        (pd.DataFrame({"x": [1, 2]}), SourceFormatError, "no column of barcodes"),
        (pd.DataFrame({"x": [1, 2]}, index=["A", "A"]), SourceFormatError, "'A' more than once"),
        (pd.DataFrame({"x": [1, 2]}, index=["A", None]), SourceFormatError, "no barcode in row 1"),
        (pd.DataFrame(index=["A"]), SourceFormatError, "no column apart from"),
        (pd.DataFrame([[1, 2]], columns=["x", "x"], index=["A"]), SourceFormatError, "'x' more than once"),
        (pd.DataFrame({"x": [1, "b"]}, index=["A", "B"]), SourceFormatError, "mixed-integer values"),
        (pd.DataFrame({"x": [1]}, index=pd.MultiIndex.from_tuples([("A", "B")])), SourceFormatError, "several levels"),
        (pd.DataFrame({"x": pd.Categorical([pd.Timestamp(0)])}, index=["A"]), SourceFormatError, "categories of date"),
        (pd.DataFrame({"x": [1j, 2j]}, index=["A", "B"]), SourceFormatError, "complex values"),
    ],
)
def test_refused(tmp_path, monkeypatch, value, kind, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    with pytest.raises(kind, match=message) as error:
        read_obs_tables("obs", value)
    assert isinstance(error.value, LazypertError)


def test_tables_that_share_some_columns_are_refused():
    one, two = pd.DataFrame({"x": [1], "y": [2]}, index=["A"]), pd.DataFrame({"x": [1], "z": [2]}, index=["B"])
    with pytest.raises(ConfigError, match="'x' in both"):
        read_obs_tables("obs", [one, two])
    with pytest.raises(SourceFormatError, match="'A' more than once"):
        read_obs_tables("obs", [one, one])


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (pd.array([True, None, True], dtype=object), "boolean"),
        (pd.array([1, None, 3], dtype=object), "Int64"),
        (pd.array([1, 2.5, None], dtype=object), "float64"),
        (np.array([1, 2, 3], "f2"), "float32"),
    ],
    ids=["booleans", "integers", "floats", "half"],
)
def test_python_objects_and_half_floats(values, dtype):
    found = read(pd.DataFrame({"x": values}, index=["A", "B", "C"])).frame["x"]
    assert found.dtype == dtype
    assert found.dropna().tolist() == [value for value in values if value is not None]


@pytest.mark.parametrize("dtype", ["int64", "Int64", "boolean", "str"])
def test_categories_of_text_and_numbers_stay(dtype):
    values = pd.Categorical(pd.array([1, 0, 1]).astype(dtype))
    found = read(pd.DataFrame({"x": values}, index=["A", "B", "C"])).frame["x"]
    assert found.tolist() == list(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cell,x,x\nA,1,2\n", "t.csv has the column 'x' more than once"),
        ("x,y\nA,1,2\nB,3,4\n", "lines with more fields than its header, such as R writes"),
    ],
    ids=["repeated", "row_names"],
)
def test_headers_that_do_not_name_every_column(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SourceFormatError, match=message):
        read_obs_tables("obs", tmp_path / "t.csv")


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / "calls.csv").write_bytes(b"")
    (tmp_path / "calls.parquet").write_bytes(b"PAR1")
    for name in ("calls.csv", "calls.parquet"):
        with pytest.raises(SourceFormatError, match="cannot be read as a"):
            read_obs_tables("obs", tmp_path / name)
