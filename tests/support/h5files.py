"""H5AD files written by hand, to be made odd or broken."""

from __future__ import annotations

import h5py
import numpy as np

from tests.support.stores import counts

N_OBS, N_VARS = 12, 7
LABELS = ("TP53", "non-targeting", "KRAS")
PERTURBATION_ROLES = {"pert_col": "perturbation", "control_pert": "non-targeting"}
TEXT = h5py.string_dtype()


def mark(node, kind, version, **attrs):
    node.attrs.update({"encoding-type": kind, "encoding-version": version, **attrs})
    return node


def text(group, name, values):
    group.create_dataset(name, data=np.array(values, dtype=object), dtype=TEXT)
    return mark(group[name], "string-array", "0.2.0")


def array(group, name, values, **options):
    group.create_dataset(name, data=values, **options)
    return mark(group[name], "array", "0.2.0")


def categorical(group, name, codes, labels, **attrs):
    node = mark(group.create_group(name), "categorical", "0.2.0", ordered=False)
    node.attrs.update(attrs)
    array(node, "codes", np.asarray(codes))
    (text if isinstance(labels[0], str) else array)(node, "categories", labels)
    return node


def nullable(group, name, kind, values, mask):
    node = mark(group.create_group(name), f"nullable-{kind}", "0.1.0")
    (text if kind == "string-array" else array)(node, "values", values)
    array(node, "mask", np.asarray(mask))
    return node


def frame(group, name, names, columns):
    node = mark(group.create_group(name), "dataframe", "0.2.0", _index="_index")
    node.attrs.create("column-order", np.array(columns, dtype=object), dtype=TEXT)
    text(node, "_index", names)
    return node


def sparse(group, name, matrix, kind="csr_matrix", **options):
    node = mark(group.create_group(name), kind, "0.1.0", shape=matrix.shape)
    for array_name in ("data", "indices", "indptr"):
        node.create_dataset(array_name, data=getattr(matrix, array_name), **options)
    return node


def write_base(path, change=None, n_obs=N_OBS, n_vars=N_VARS, **options):
    """Write a small screen with a categorical, numbers, text, a layer and an embedding, then change it."""
    matrix = counts(n_obs, n_vars)
    with h5py.File(path, "w", **options) as file:
        mark(file, "anndata", "0.1.0")
        obs = frame(file, "obs", [f"c{i}" for i in range(n_obs)], ["perturbation", "n", "note"])
        categorical(obs, "perturbation", (np.arange(n_obs) % 3).astype("i1"), LABELS)
        array(obs, "n", np.arange(n_obs))
        text(obs, "note", [f"é{i}" for i in range(n_obs)])
        var = frame(file, "var", [f"g{j}" for j in range(n_vars)], ["length"])
        array(var, "length", np.arange(n_vars) * 0.5)
        sparse(file, "X", matrix)
        sparse(file.create_group("layers"), "double", matrix * 2)
        array(file.create_group("obsm"), "X_pca", np.arange(n_obs * 2.0).reshape(n_obs, 2))
        if change is not None:
            change(file)
    return path


def replace(file, where, values, **options):
    """Replace the values of a dataset and keep its attributes."""
    attrs = dict(file[where].attrs)
    del file[where]
    file.create_dataset(where, data=values, **options)
    file[where].attrs.update(attrs)


def dense_x(file, values, **options):
    del file["X"]
    array(file, "X", values, **options)


def records(file, obs, var, uns=(), **others):
    """Rewrite the file as AnnData before 0.7 did: tables as arrays of records, categories in uns."""
    for name in list(file.attrs):
        del file.attrs[name]
    for name in ("obs", "var", "obsm", "layers"):
        del file[name]
    file["obs"], file["var"] = obs, var
    for name, values in {**{f"uns/{n}": v for n, v in uns}, **others}.items():
        file[name] = values
    matrix = counts(N_OBS, N_VARS)
    del file["X"]
    group = file.create_group("X")
    group.attrs.update({"h5sparse_format": "csr", "h5sparse_shape": matrix.shape})
    for array_name in ("data", "indices", "indptr"):
        group[array_name] = getattr(matrix, array_name)


def record_obs(codes, names=None, dtype="S3", **more):
    """(N_OBS,) records with the fields index, perturbation and those in `more`."""
    fields = [("index", dtype), ("perturbation", np.asarray(codes).dtype)]
    fields += [(name, np.asarray(v).dtype, np.asarray(v).shape[1:]) for name, v in more.items()]
    made = np.zeros(N_OBS, dtype=fields)
    made["index"] = [f"c{i}".encode() for i in range(N_OBS)] if names is None else names
    made["perturbation"] = codes
    for name, values in more.items():
        made[name] = values
    return made


def record_var():
    made = np.zeros(N_VARS, dtype=[("index", "S3"), ("length", "f8")])
    made["index"] = [f"g{j}".encode() for j in range(N_VARS)]
    return made
