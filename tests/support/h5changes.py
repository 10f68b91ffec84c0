"""Changes that make an H5AD file of `write_base` odd or broken: each takes the open file."""

import h5py
import numpy as np
import pytest

from tests.support.h5files import LABELS, N_OBS, N_VARS, TEXT, record_obs, record_var, records, replace
from tests.support.stores import counts

X = counts(N_OBS, N_VARS)
CODES = (np.arange(N_OBS) % 3).astype("i1")
OLD_LABELS = (("perturbation_categories", np.array(LABELS, "S13")),)


def put(where, index, value):
    def change(file):
        file[where][index] = value

    return change


def cut(where):
    return lambda file: replace(file, where, file[where][:-1])


def longer(where):
    return lambda file: replace(file, where, np.append(file[where][:], file[where][:1]))


def drop(where):
    return lambda file: file.pop(where)


def as_type(where, dtype, **options):
    return lambda file: replace(file, where, file[where][:].astype(dtype), **options)


def attribute(where, **attrs):
    return lambda file: file[where].attrs.update(attrs)


def without(where, name):
    return lambda file: file[where].attrs.pop(name)


def all_of(*changes):
    def change(file):
        for one in changes:
            one(file)

    return change


def add_column(make):
    """Let `make` write obs columns, and list them in column-order."""

    def change(file):
        obs, before = file["obs"], set(file["obs"])
        make(obs)
        listed = [*obs.attrs["column-order"], *sorted(set(obs) - before)]
        obs.attrs.create("column-order", np.array(listed, dtype=object), dtype=TEXT)

    return change


def columns_are(where, *names):
    return lambda file: file[where].attrs.create("column-order", np.array(names, dtype=object), dtype=TEXT)


def only(make):
    """Let `make` write X anew."""
    return all_of(drop("X"), make)


def compressed(**options):
    def change(file):
        for part in ("data", "indices", "indptr"):
            replace(file, f"X/{part}", file[f"X/{part}"][:], chunks=(5,), **options)
        replace(file, "obs/n", file["obs/n"][:], chunks=(5,), **options)

    return change


def plugin(name):
    """Compress with a filter of hdf5plugin."""
    return lambda file: compressed(**getattr(pytest.importorskip("hdf5plugin"), name)())(file)


def unwritten(part):
    def change(file):
        shape, dtype = file[part].shape, file[part].dtype
        del file[part]
        file.create_dataset(part, shape, dtype, chunks=(8,))

    return change


def latin1(where):
    def change(file):
        values = np.array([b"caf\xe9"] * file[where].shape[0], dtype=object)
        replace(file, where, values, dtype=TEXT)

    return change


def broken_link(where, link):
    return all_of(drop(where), lambda f: f.__setitem__(where, link))


def loop(where):
    return all_of(drop(where), lambda f: f.__setitem__(where, h5py.SoftLink(f"/{where}")))


def as_records(codes=CODES, uns=OLD_LABELS, more=None, **others):
    """Rewrite the file as AnnData before 0.7 did."""
    return lambda file: records(file, record_obs(codes, **(more or {})), record_var(), uns, **others)
