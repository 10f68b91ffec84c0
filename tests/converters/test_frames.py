"""obs and var in every encoding since AnnData 0.5 are converted exactly, and broken ones are refused.

The oracle is what AnnData reads.
"""

import numpy as np
import pytest

import lazypert as lp
from lazypert.converter import open_source
from lazypert.errors import ColumnNotFoundError
from tests.support.conversions import assert_command_refuses, assert_converted, assert_refused, write_changed
from tests.support.h5changes import (
    CODES,
    add_column,
    all_of,
    as_records,
    as_type,
    attribute,
    columns_are,
    cut,
    drop,
    longer,
    put,
    without,
)
from tests.support.h5files import (
    LABELS,
    N_OBS,
    PERTURBATION_ROLES,
    TEXT,
    array,
    categorical,
    nullable,
    record_obs,
    record_var,
    records,
    replace,
    text,
)
from tests.support.sampling import sampled


def old_categories(file):
    """Write a categorical as AnnData 0.7 did: codes in the column, categories in a group next to it."""
    obs = file["obs"]
    obs.attrs["encoding-version"] = "0.1.0"
    del obs["perturbation"]
    text(obs, "__categories/perturbation", LABELS).attrs["ordered"] = True
    obs["perturbation"] = CODES
    obs["perturbation"].attrs["categories"] = obs["__categories/perturbation"].ref


def text_records(file):
    """Text of variable length inside records."""
    made = record_obs(CODES, [f"é{i}" for i in range(N_OBS)], dtype=TEXT)
    records(file, made, record_var())


def rename_column(name):
    return all_of(columns_are("obs", "perturbation", "note", name))


CONVERTED = {
    "old_categories": old_categories,
    "records": as_records(),
    "records_of_text": text_records,
    "records_one_category": as_records(np.zeros(N_OBS, "i1"), [("perturbation_categories", np.array([b"only"]))]),
    "records_codes_beyond_categories": as_records(CODES, [("perturbation_categories", np.array([b"a", b"b"]))]),
    "records_missing_labels": as_records(CODES - np.int8(1)),
    "records_of_vectors": as_records(more={"n": np.arange(N_OBS)}),
    "index_of_another_name": all_of(lambda f: f.move("obs/_index", "obs/id"), attribute("obs", _index="id")),
    "index_that_is_a_column": all_of(attribute("obs", _index="note")),
    "index_of_numbers": lambda f: [f.pop("obs/_index"), array(f["obs"], "_index", np.arange(N_OBS) * 3)],
    "names_twice": lambda f: replace(f, "obs/_index", np.array(["same"] * N_OBS, dtype=object), dtype=TEXT),
    "no_columns": columns_are("obs"),
    "column_not_listed": columns_are("obs", "note", "perturbation"),
    "nullable": add_column(
        lambda g: [
            nullable(g, "maybe_i", "integer", np.arange(N_OBS, dtype="u2"), CODES == 1),
            nullable(g, "maybe_b", "boolean", CODES > 0, CODES == 1),
            nullable(g, "maybe_s", "string-array", [f"s{i}" for i in range(N_OBS)], CODES == 1),
        ]
    ),
    "ordered": attribute("obs/perturbation", ordered=True),
    "categories_of_integers": add_column(lambda g: categorical(g, "k", CODES, [5, 3, 9])),
    "categories_of_floats": add_column(lambda g: categorical(g, "k", CODES, [0.5, -1.0, 9.25])),
    "categories_of_booleans": add_column(lambda g: categorical(g, "k", CODES % 2, [False, True])),
    "codes_int64": as_type("obs/perturbation/codes", "i8"),
    "codes_unsigned": as_type("obs/perturbation/codes", "u1"),
    "perturbation_missing_somewhere": put("obs/perturbation/codes", slice(3, 6), -1),
    "numbers_of_every_width": add_column(
        lambda g: [array(g, t, np.arange(N_OBS).astype(t)) for t in ("u1", "i2", "u4", "i8", "f4", "?")]
    ),
    "column_names": add_column(lambda g: [array(g, n, np.arange(N_OBS)) for n in ("c", "X", ".hidden", "é 漢", "0")]),
}
GROUPED = ["old_categories", "records", "perturbation_missing_somewhere"]


@pytest.mark.parametrize("case", sampled(CONVERTED))
def test_odd_tables_are_converted_exactly(tmp_path, case):
    assert_converted(tmp_path / "odd.h5ad", CONVERTED[case])


@pytest.mark.parametrize("case", GROUPED)
def test_odd_tables_are_grouped_exactly(tmp_path, case):
    assert_converted(tmp_path / "odd.h5ad", CONVERTED[case], **PERTURBATION_ROLES)


REFUSED = {
    "obs_is_an_array": (all_of(drop("obs"), lambda f: array(f, "obs", np.zeros(N_OBS))), "'obs'.*a dataframe"),
    "obs_without_encoding": (without("obs", "encoding-type"), "'obs'.*a dataframe"),
    "obs_without_index": (drop("obs/_index"), "'obs/_index'.*is missing"),
    "obs_names_no_index": (without("obs", "_index"), "'obs'.*no attribute '_index'"),
    "obs_lists_no_columns": (without("obs", "column-order"), "'obs'.*no attribute 'column-order'"),
    "index_short": (cut("obs/_index"), "'obs/perturbation/codes'.*has 12 values, expected 11"),
    "index_with_missing_names": (
        lambda f: [f.pop("obs/_index"), nullable(f["obs"], "_index", "string-array", ["a"] * N_OBS, CODES == 2)],
        "'obs/_index/values'.*no name at row 2",
    ),
    "column_listed_but_absent": (drop("obs/n"), "'obs/n'.*is missing"),
    "column_listed_twice": (columns_are("obs", "n", "note", "n"), "'obs'.*'n' more than once"),
    "column_short": (cut("obs/n"), "'obs/n'.*has 11 values, expected 12"),
    "column_long": (longer("obs/n"), "'obs/n'.*has 13 values, expected 12"),
    "var_column_short": (cut("var/length"), "'var/length'.*has 6 values"),
    "codes_short": (cut("obs/perturbation/codes"), "'obs/perturbation/codes'.*has 11 values"),
    "code_too_large": (put("obs/perturbation/codes", 0, 3), "'obs/perturbation/codes'.*code 3.*-1 to 2"),
    "code_too_small": (put("obs/perturbation/codes", 0, -2), "'obs/perturbation/codes'.*code -2"),
    "codes_of_floats": (as_type("obs/perturbation/codes", "f4"), "'obs/perturbation/codes'.*float32"),
    "categories_twice": (
        lambda f: replace(f, "obs/perturbation/categories", np.array(["a", "b", "a"], dtype=object), dtype=TEXT),
        "'obs/perturbation/codes'.*unique",
    ),
    "categories_with_nan": (add_column(lambda g: categorical(g, "k", CODES, [0.5, np.nan, 1])), "'obs/k/codes'.*null"),
    "no_categories": (drop("obs/perturbation/categories"), "'obs/perturbation/categories'.*is missing"),
    "old_code_too_large": (all_of(old_categories, put("obs/perturbation", 0, 9)), "'obs/perturbation'.*code 9"),
    "old_categories_lost": (
        all_of(old_categories, attribute("obs/perturbation", categories="__categories/lost")),
        "__categories/lost'.*is missing",
    ),
    "mask_short": (
        all_of(add_column(lambda g: nullable(g, "k", "integer", np.arange(N_OBS), CODES == 1)), cut("obs/k/mask")),
        "'obs/k/mask'.*has 11 values",
    ),
    "values_short": (
        all_of(add_column(lambda g: nullable(g, "k", "integer", np.arange(N_OBS), CODES == 1)), cut("obs/k/values")),
        "'obs/k/values'.*has 11 values",
    ),
    "mask_of_integers": (
        add_column(lambda g: nullable(g, "k", "integer", np.arange(N_OBS), np.zeros(N_OBS, "i4"))),
        "'obs/k/mask'.*booleans",
    ),
    "records_code_too_small": (as_records(CODES - np.int8(5)), "code -5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_tables_are_refused_with_one_clear_error(tmp_path, capsys, case):
    change, says = REFUSED[case]
    path, written = write_changed(tmp_path / "odd.h5ad", change)
    assert_refused(path, says, capsys, written=written)


ODD_NAMES = {
    "zarr.json": rename_column("zarr.json"),
    "..": rename_column(".."),
    "": rename_column(""),
    "_index": rename_column("_index"),
    "__lazypert__": rename_column("__lazypert__"),
    "é" * 128: rename_column("é" * 128),
    "S/G2M": all_of(lambda f: array(f["obs"], "S/G2M", np.arange(N_OBS)), rename_column("S/G2M")),
}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_column_whose_name_a_store_cannot_have_is_left_out(tmp_path, name):
    path, _ = write_changed(tmp_path / "odd.h5ad", ODD_NAMES[name])
    reader = open_source(path)
    assert name not in reader.obs_columns
    assert len(reader.obs_columns) > 1
    assert [line for line in reader.not_carried if line.startswith(f"obs/{name}: {name!r} cannot be the name")]


def test_a_var_column_whose_name_a_store_cannot_have_is_left_out(tmp_path):
    path, _ = write_changed(tmp_path / "odd.h5ad", columns_are("var", "length", "n/a"))
    reader = open_source(path)
    assert list(reader.var()) == ["length"]
    assert any(line.startswith("var/n/a: 'n/a' cannot be the name") for line in reader.not_carried)


def test_a_role_cannot_be_a_column_that_was_left_out(tmp_path):
    path, _ = write_changed(tmp_path / "odd.h5ad", ODD_NAMES["S/G2M"])
    with pytest.raises(ColumnNotFoundError, match=r"batch_col: got .S/G2M.*.S/G2M. cannot be the name of a column"):
        lp.convert(path, tmp_path / "s.zarr", batch_col="S/G2M")


@pytest.mark.slow
def test_the_shell_command_prints_the_error_on_one_line(tmp_path):
    path, written = write_changed(tmp_path / "odd.h5ad", REFUSED["code_too_large"][0])
    assert_command_refuses(path, written=written)
