"""Convert in child processes and kill them at random moments; run by test_faults.py.

Imports once and forks for every run, so that a hundred runs take no hundred imports. The parent
itself never starts a thread.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import lazypert as lp
from lazypert.conversion import plan
from lazypert.errors import StoreNotFoundError
from lazypert.store import format as schema
from lazypert_converters import h5ad, tenx  # noqa: F401 - so that no child imports them

OPTIONS = {
    "pert_col": "perturbation",
    "control_pert": "non-targeting",
    "cell_type_col": "cell_type",
    "batch_col": "batch",
    "memory_limit": "128MiB",
    "progress": False,
}


def in_child(function, *args):
    """Run in a forked child; return its pid. Exit status 0 for True, 1 for False, 2 for an exception."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os._exit(0 if function(*args) else 1)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(2)


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def convert(source, target):
    lp.convert(source, target, **OPTIONS)
    return True


def files(store):
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in Path(store).rglob("*") if p.is_file()}


def is_right(target, reference):
    lp.verify(target)
    found, expected = files(target), files(reference)
    different = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    assert not different, different
    return True


def is_refused(partial):
    """What a killed run left behind is no store to any reader, or a whole one that only lacked its name."""
    try:
        lp.open(partial / "store")
    except StoreNotFoundError:
        return True
    lp.verify(partial / "store")
    return True


def main(source, folder, n_kills, seed):
    schema.MATRIX_CHUNK, schema.MATRIX_SHARD = 512, 4_096  # many shards
    plan.MAX_BLOCK_BYTES, plan.MIN_BLOCK_BYTES = 65_536, 1  # many blocks
    rng, folder = random.Random(seed), Path(folder)
    reference, target = folder / "reference.zarr", folder / "s.zarr"
    assert wait(in_child(convert, source, reference)) == 0
    shutil.rmtree(reference)
    start = time.perf_counter()  # without what the first run compiles
    assert wait(in_child(convert, source, reference)) == 0
    whole = time.perf_counter() - start
    seen = {"killed": 0, "finished": 0, "finished_after_kills": 0, "wrong": 0, "phases": {}}
    kills_since = 0
    while seen["killed"] < n_kills:
        pid = in_child(convert, source, target)
        time.sleep(rng.uniform(0, 1.1 * whole))
        os.kill(pid, signal.SIGKILL)
        status = wait(pid)
        if status == -signal.SIGKILL:
            seen["killed"] += 1
            kills_since += 1
        elif status != 0:
            seen["wrong"] += 1
        partials = [path for path in folder.iterdir() if path.name.startswith("s.zarr.partial-")]
        for partial in partials:
            done = sorted(path.name for path in partial.glob("work/*/*.json"))
            phase = "reduce" if any(name.startswith("shard") for name in done) else "map" if done else "start"
            seen["phases"][phase] = seen["phases"].get(phase, 0) + 1
            if not target.exists() and wait(in_child(is_refused, partial)) != 0:
                seen["wrong"] += 1
        if target.exists():  # complete, whether its process was killed right after or not
            seen["finished"] += 1
            seen["finished_after_kills"] += kills_since > 0
            seen["wrong"] += wait(in_child(is_right, target, reference)) != 0
            shutil.rmtree(target)
            kills_since = 0
        elif rng.random() < 0.3:  # let it finish what the killed ones have begun
            seen["wrong"] += wait(in_child(convert, source, target)) != 0
            seen["wrong"] += wait(in_child(is_right, target, reference)) != 0
            seen["finished"] += 1
            seen["finished_after_kills"] += 1
            shutil.rmtree(target)
            kills_since = 0
    seen["wrong"] += wait(in_child(convert, source, target)) != 0 or wait(in_child(is_right, target, reference)) != 0
    seen["left"] = sorted(path.name for path in folder.iterdir() if path.name.startswith("s.zarr"))
    seen["seconds"] = whole
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
