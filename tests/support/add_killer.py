"""Add to a store in child processes that stop at every file operation in turn; run by test_store_update.py.

An audit hook counts the operations on files beside the store, and at one of them kills the process or raises an error.
The script forks for every run, so that packages are imported only once. The parent process never starts a thread.
"""

import errno
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import lazypert as lp
from lazypert.errors import DiskFullError
from tests.support.killer import files, in_child, wait
from tests.support.stores import read_store

EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "os.scandir"}


def count_operations(folder, stop_at, act):
    """Call `act` before the operation of number `stop_at` below a folder; return the list of operations so far."""
    seen = []

    def hook(event, args):
        if event in EVENTS and args and str(folder) in str(args[0]) + (str(args[1]) if len(args) > 1 else ""):
            seen.append(event)
            if len(seen) == stop_at:
                act()

    sys.addaudithook(hook)
    return seen


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk():
    raise OSError(errno.ENOSPC, "No space left on device")


def add(store, overwrite):
    names = read_names(store)
    table = pd.DataFrame({"guide": [f"g{i % 3}" for i in range(len(names))], "score": np.arange(len(names)) / 7}, names)
    if overwrite:
        table = table.iloc[::-1].assign(guide=table["guide"].to_numpy(), score=1)
    lp.add_obs(store, table, overwrite=overwrite)
    return True


def read_names(store):
    return lp.open(store).cell_name.to_numpy()


def add_until(store, overwrite, stop_at, act):
    count_operations(store.parent, stop_at, act)
    try:
        return add(store, overwrite)
    except DiskFullError:
        return False


def write_count(store, overwrite, out):
    seen = count_operations(store.parent, -1, None)
    add(store, overwrite)
    out.write_text(str(len(seen)))
    return True


def is_old_or_new(store, old, new, out):
    """Whether a store is completely as before or as after the update, for every reader; writes which."""
    import anndata
    import zarr

    lp.verify(store)
    now = files(store)
    which = "old" if now == files(old) else "new"
    expected = read_store(old if which == "old" else new)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        unconsolidated = anndata.read_zarr(zarr.open_group(store, mode="r", use_consolidated=False))
    for found in (read_store(store), unconsolidated):
        pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert which == "old" or set(now) == set(files(new))
    assert set(lp.open(store).coords) == set(lp.open(old if which == "old" else new).coords)
    out.write_text(which)
    return True


def main(store, overwrite, action, step):
    store, out = Path(store).resolve(), Path(store).resolve().parents[1] / "out.txt"
    if overwrite:
        assert wait(in_child(add, store, False)) == 0
    old, new = store.parents[1] / "old.zarr", store.parents[1] / "new.zarr"
    shutil.copytree(store, old)
    assert wait(in_child(write_count, store, overwrite, out)) == 0
    n_operations = int(out.read_text())
    store.rename(new)
    counts = {"old": 0, "new": 0, "wrong": 0, "operations": n_operations}
    for stop_at in sorted({*range(1, n_operations + 1, step), *range(max(1, n_operations - 40), n_operations + 1)}):
        shutil.copytree(old, store)
        status = wait(in_child(add_until, store, overwrite, stop_at, {"kill": kill, "full": fill_disk}[action]))
        if status not in ((-signal.SIGKILL,) if action == "kill" else (0, 1)):
            print(f"operation {stop_at}: status {status}", file=sys.stderr)
            counts["wrong"] += 1
        if wait(in_child(is_old_or_new, store, old, new, out)) == 0:
            counts[out.read_text()] += 1
        else:
            counts["wrong"] += 1
        if action == "full":
            counts["wrong"] += sorted(path.name for path in store.parent.iterdir()) != [store.name]
        if stop_at % (5 * step) == 1:  # the next update succeeds, and cleans up
            counts["wrong"] += wait(in_child(add, store, True)) != 0
            counts["wrong"] += wait(in_child(lp.verify, store)) != 0
            counts["wrong"] += sorted(path.name for path in store.parent.iterdir()) != [store.name]
        for path in store.parent.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "overwrite", sys.argv[3], int(sys.argv[4]))
