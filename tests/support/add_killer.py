"""Add to a store in child processes that stop at every file operation in turn; run by test_store_update.py.

An audit hook counts the changes of files beside and in the store, and before one of them kills the process or fails.
The script forks for every run, so that packages are imported only once. The parent process never starts a thread.
"""

import errno
import json
import os
import shutil
import signal
import sys
import warnings
from collections import namedtuple
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import zarr

import lazypert as lp
from lazypert.errors import LazypertError
from lazypert.screen.cell_order import name_hashes
from lazypert.updates import store_folder
from tests.support.killer import files, in_child, wait
from tests.support.stores import read_store

_DiskUsage = namedtuple("_DiskUsage", ["total", "used", "free"])
CHANGES = {"os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove"}
FILL = {"os.rename", "os.link", "os.mkdir"}


def count_operations(folder, stop_at, act):
    """Call `act` before the change of number `stop_at` below a folder; return the list of changes so far."""
    seen, counted = [], FILL if act is fill_disk else CHANGES

    def hook(event, args):
        if event == "open":
            is_change = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            is_change = event in counted
        if is_change and str(folder) in f"{args[0]} {args[1]}":
            seen.append(event)
            if len(seen) == stop_at:
                act()

    sys.addaudithook(hook)
    return seen


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk():
    shutil.disk_usage = lambda _: _DiskUsage(1 << 30, 1 << 30, 0)
    raise OSError(errno.ENOSPC, "No space left on device")


def add(store, overwrite, before=lambda: None):
    names = lp.open(store).cell_name.to_numpy()
    table = pd.DataFrame({"guide": [f"g{i % 3}" for i in range(len(names))], "score": np.arange(len(names)) / 7}, names)
    if overwrite:
        table = table.iloc[::-1].assign(guide=table["guide"].to_numpy(), score=1)
    before()
    lp.add_obs(store, table, overwrite=overwrite)
    return True


def add_until(store, overwrite, stop_at, act):
    try:
        return add(store, overwrite, lambda: count_operations(store.parent, stop_at, act))
    except LazypertError:
        return False


def write_count(store, overwrite, act, out):
    seen = []
    add(store, overwrite, lambda: seen.append(count_operations(store.parent, -1, act)))
    out.write_text(str(len(seen[0])))
    return True


def is_valid(store):
    """Whether every reader sees the same columns."""
    lp.verify(store)
    seen = read_store(store).obs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        pd.testing.assert_frame_equal(anndata.read_zarr(zarr.open_group(store, use_consolidated=False)).obs, seen)
    assert [name for name, coord in lp.open(store).coords.items() if "obs_column" in coord.attrs] == list(seen)
    return True


def main(store, overwrite, action, n_stops):
    name_hashes(["a"])  # loads a kernel once, not in every child
    store_folder.sync = lambda _: None  # what a killed process wrote is there without it
    act = {"kill": kill, "full": fill_disk}[action]
    store = Path(store).resolve()
    old, new, out = (store.parents[1] / name for name in ("old.zarr", "new.zarr", "out.txt"))
    if overwrite:
        assert wait(in_child(add, store, False)) == 0
    shutil.copytree(store, old)
    assert wait(in_child(write_count, store, overwrite, act, out)) == 0
    shutil.copytree(store, new)
    assert wait(in_child(is_valid, old)) == wait(in_child(is_valid, new)) == 0
    contents = {"old": files(old), "new": files(new)}
    n_operations = int(out.read_text())
    counts = {"old": 0, "new": 0, "wrong": 0, "operations": n_operations}
    for number, stop_at in enumerate(np.unique(np.linspace(1, n_operations, n_stops).astype(int)).tolist()):
        for path in store.parent.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(old, store)
        status = wait(in_child(add_until, store, overwrite, stop_at, act))
        found = files(store)
        which = next((name for name, content in contents.items() if found == content), "wrong")
        # An error that is of no consequence, such as making a folder that exists, is ignored.
        if status != -signal.SIGKILL if action == "kill" else (status, which) not in ((1, "old"), (0, "new")):
            print(f"operation {stop_at}: status {status}", file=sys.stderr)
            which = "wrong"
        if action == "full" and [path.name for path in store.parent.iterdir()] != [store.name]:
            print(f"operation {stop_at}: left {list(store.parent.iterdir())}", file=sys.stderr)
            which = "wrong"
        if number % 8 == 3:  # the next update succeeds, and cleans up
            is_done = wait(in_child(add, store, True)) == wait(in_child(is_valid, store)) == 0
            if not is_done or [path.name for path in store.parent.iterdir()] != [store.name]:
                print(f"operation {stop_at}: left {list(store.parent.iterdir())}", file=sys.stderr)
                which = "wrong"
        counts[which] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "overwrite", sys.argv[3], int(sys.argv[4]))
