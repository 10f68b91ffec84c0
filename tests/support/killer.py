"""Convert in child processes and kill them at random moments; run by test_faults.py.

The script forks for every run, so that a hundred runs import the packages only once. The parent
process never starts a thread.
"""

import contextlib
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
from lazypert.conversion import staging as staging_module
from lazypert.errors import StoreNotFoundError
from lazypert.store import format as schema
from lazypert_converters import h5ad, tenx  # noqa: F401 - imported once, before the forks

with contextlib.suppress(ImportError):
    import distributed  # noqa: F401 - Dask imports it: once, before the forks

OPTIONS = {
    "pert_col": "perturbation",
    "control_pert": "non-targeting",
    "cell_type_col": "cell_type",
    "batch_col": "batch",
    "memory_limit": "128MiB",
    "progress": False,
}


def in_child(function, *args):
    """Run in a forked child; return its pid. The exit status is 0 for True, 1 for False, 2 for an exception."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os._exit(0 if function(*args) else 1)
    except BaseException as error:  # noqa: BLE001 - the exit status reports it to the parent
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(2)


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def convert(source, target):
    lp.convert(source, target, **OPTIONS)
    return True


def files(store):
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in Path(store).rglob("*") if p.is_file()}


def is_correct(target, reference):
    lp.verify(target)
    actual, expected = files(target), files(reference)
    different = [key for key in actual.keys() | expected.keys() if actual.get(key) != expected.get(key)]
    assert not different, different
    return True


def is_refused_or_complete(staging):
    """Whether readers refuse what a killed run left behind, or it was complete and only not renamed yet."""
    try:
        lp.open(staging / "store")
    except StoreNotFoundError:
        return True
    lp.verify(staging / "store")
    return True


def main(source, folder, n_kills, seed):
    schema.MATRIX_CHUNK, schema.MATRIX_SHARD = 512, 4_096  # many shards
    plan.MAX_BLOCK_BYTES, plan.MIN_BLOCK_BYTES = 65_536, 1  # many blocks
    staging_module.sync = lambda _: None  # what a killed process wrote is there without it
    rng, folder = random.Random(seed), Path(folder)
    reference, target = folder / "reference.zarr", folder / "s.zarr"
    assert wait(in_child(convert, source, reference)) == 0
    shutil.rmtree(reference)
    start = time.perf_counter()  # the second run, because the first one compiles kernels
    assert wait(in_child(convert, source, reference)) == 0
    run_seconds = time.perf_counter() - start
    counts = {"killed": 0, "finished": 0, "finished_after_kills": 0, "wrong": 0, "phases": {}}
    kills_since = 0
    while counts["killed"] < n_kills:
        pid = in_child(convert, source, target)
        time.sleep(rng.uniform(0, 1.1 * run_seconds))
        os.kill(pid, signal.SIGKILL)
        status = wait(pid)
        if status == -signal.SIGKILL:
            counts["killed"] += 1
            kills_since += 1
        elif status != 0:
            counts["wrong"] += 1
        for staging in [path for path in folder.iterdir() if path.name.startswith("s.zarr.partial-")]:
            checkpoints = sorted(path.name for path in staging.glob("work/*/*.json"))
            has_shards = any(name.startswith("shard") for name in checkpoints)
            phase = "reduce" if has_shards else "map" if checkpoints else "start"
            counts["phases"][phase] = counts["phases"].get(phase, 0) + 1
            if not target.exists() and wait(in_child(is_refused_or_complete, staging)) != 0:
                counts["wrong"] += 1
        if target.exists():  # complete, even if the process was killed right afterwards
            counts["finished"] += 1
            counts["finished_after_kills"] += kills_since > 0
            counts["wrong"] += wait(in_child(is_correct, target, reference)) != 0
            shutil.rmtree(target)
            kills_since = 0
        elif rng.random() < 0.3:  # let a run finish what the killed ones started
            counts["wrong"] += wait(in_child(convert, source, target)) != 0
            counts["wrong"] += wait(in_child(is_correct, target, reference)) != 0
            counts["finished"] += 1
            counts["finished_after_kills"] += 1
            shutil.rmtree(target)
            kills_since = 0
    counts["wrong"] += wait(in_child(convert, source, target)) != 0
    counts["wrong"] += wait(in_child(is_correct, target, reference)) != 0
    counts["left"] = sorted(path.name for path in folder.iterdir() if path.name.startswith("s.zarr"))
    counts["seconds"] = run_seconds
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
