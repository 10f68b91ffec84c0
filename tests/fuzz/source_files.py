"""Converting mutants of source files: each is refused with an error of lazypert, or read exactly, never worse.

Mutants are converted in processes that are supervised, because the HDF5 library crashes on some and loops on others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

EXPECTED = ("refused", "exact", "original", "crashed", "stuck")
"""Outcomes that lazypert is not to blame for: HDF5 itself crashes or loops, which ``convert(isolate=True)`` handles."""

_MEMORY = 4 << 30  # bytes of address space above what the imports take
_SECONDS = 60  # for one mutant, before its process counts as stuck


def make_mutant(base: str, seed: int, folder: Path, original: Path) -> tuple[Path, str]:
    """Write a mutant into a folder: its path, and what was changed."""
    from tests.fuzz.bases import BASES, copy_base
    from tests.fuzz.mutations import mutate

    path = folder / BASES[base].name
    copy_base(original, path)
    rng = np.random.default_rng([sorted(BASES).index(base), seed])
    said = mutate(path, rng)
    # Files of a folder can be absent or swapped without being damaged: only another library's values tell, so there is
    # no second change, which that library might refuse.
    while rng.random() < 0.2 and not path.is_dir():
        with contextlib.suppress(Exception):  # the file may be broken already
            said += f"; {mutate(path, rng)}"
    return path, said


def outcome(base: str, path: Path, original: Path, **options: Any) -> tuple[str, str]:
    """Convert a mutant: how it ended, and details."""
    import lazypert as lp
    from lazypert.errors import LazypertError
    from tests.fuzz.bases import BASES

    kind, store = BASES[base], path.parent / "out" / "a.zarr"
    store.parent.mkdir()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lp.convert(path, store, **kind.roles, progress=False, **options)
    except LazypertError as error:
        left = [item.name for item in store.parent.iterdir()]
        if left:
            return "left files behind", str(left)
        if type(error).__name__ in ("StoreDamagedError", "StoreChangedError", "DiskFullError"):
            return "wrong kind of error", repr(error)
        return "refused", f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - what must not happen, whatever it is
        return "raised", traceback.format_exc()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.assert_converted(store, path)
    except BaseException as error:  # noqa: BLE001 - the other library may refuse the mutant in any way
        reason = repr(error)
    else:
        return "exact", ""
    try:
        kind.assert_converted(store, original)
    except Exception as error:  # noqa: BLE001 - the store itself may be unreadable
        return "differs", f"from the mutant: {reason[:800]}\nfrom the original: {str(error)[:800]}"
    return "original", ""


def _work(base: str, first: int, stop: int, original: Path) -> None:
    """Convert the mutants of a range of seeds, one line of JSON each before and after."""
    _limit_memory()
    for seed in range(first, stop):
        print(json.dumps({"seed": seed}), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                path, said = make_mutant(base, seed, Path(folder), original)
            except Exception as error:  # noqa: BLE001 - h5py refuses some changes
                print(json.dumps({"seed": seed, "outcome": "not made", "said": repr(error)}), flush=True)
                continue
            end, detail = outcome(base, path, original)
        print(json.dumps({"seed": seed, "outcome": end, "said": said, "detail": detail}), flush=True)


def _limit_memory() -> None:
    import lazypert as lp  # noqa: F401 - what the imports take comes on top
    from tests.fuzz.bases import BASES  # noqa: F401

    with Path("/proc/self/statm").open() as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(base: str, seeds: Iterable[int], original: Path) -> Iterator[dict[str, Any]]:
    """Convert mutants in supervised processes: a record of each.

    Parameters
    ----------
    seeds
        Consecutive seeds.
    original
        The valid file.
    """
    todo = list(seeds)
    while todo:
        command = [sys.executable, "-m", "tests.fuzz.source_files", base, str(todo[0]), "--to", str(todo[-1] + 1)]
        with subprocess.Popen(
            [*command, "--worker", str(original)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            current, timer = todo[0], None
            assert process.stdout is not None
            for line in process.stdout:
                record = json.loads(line)
                current = record["seed"]
                if timer is not None:
                    timer.cancel()
                if "outcome" in record:
                    yield record
                    todo = [seed for seed in todo if seed > current]
                else:
                    timer = threading.Timer(_SECONDS, process.kill)
                    timer.start()
            status = process.wait()
        if timer is not None:
            timer.cancel()
        if todo and current == todo[0]:
            yield {"seed": current, "outcome": "stuck" if status == -9 else "crashed", "said": f"status {status}"}
            todo = todo[1:]


def main() -> None:
    """Run mutants from the command line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("base")
    parser.add_argument("seed", type=int)
    parser.add_argument("--to", type=int, help="one past the last seed")
    parser.add_argument("--keep", type=Path, help="only write the mutant, here")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    stop = given.seed + 1 if given.to is None else given.to
    if given.worker is not None:
        _work(given.base, given.seed, stop, given.worker)
        return
    from tests.fuzz.bases import BASES

    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / BASES[given.base].name
        BASES[given.base].write(original)
        if given.keep is not None:
            (Path(folder) / "mutant").mkdir()
            path, said = make_mutant(given.base, given.seed, Path(folder) / "mutant", original)
            shutil.move(path, given.keep)
            print(said)
            return
        counts: dict[str, int] = {}
        for record in run(given.base, range(given.seed, stop), original):
            counts[record["outcome"]] = counts.get(record["outcome"], 0) + 1
            if record["outcome"] not in ("refused", "exact", "original") or stop == given.seed + 1:
                print(json.dumps(record), flush=True)
        print(given.base, counts, flush=True)


if __name__ == "__main__":
    main()
