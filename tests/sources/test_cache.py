"""A file is converted on first use, and again when it changes; a store is opened as it is."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import lazypert as lp
from lazypert import PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert.errors import ConfigError, StoreNotFoundError
from tests.support.screens import holey_screen, in_store_order, write_screen


def config_of(path, **options):
    return PerturbationSourceConfig(file_path=path, **options)


def test_the_store_lies_beside_the_file_and_is_reused(tmp_path):
    path = write_screen(holey_screen(), tmp_path / "s.h5ad")
    PerturbationAnnDataSource(config_of(path))
    cache = tmp_path / "s.lazypert.zarr"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.h5ad", "s.lazypert.zarr"]
    made = (cache / "zarr.json").stat().st_mtime_ns, (cache / "zarr.json").stat().st_ino
    PerturbationAnnDataSource(config_of(path))
    assert made == ((cache / "zarr.json").stat().st_mtime_ns, (cache / "zarr.json").stat().st_ino)


def test_the_store_is_replaced_when_the_file_changes(tmp_path):
    path = write_screen(holey_screen(seed=0), tmp_path / "s.h5ad")
    PerturbationAnnDataSource(config_of(path))
    write_screen(holey_screen(seed=1), path)
    source = PerturbationAnnDataSource(config_of(path))
    assert (
        source.matrix.read_rows(np.arange(40)).to_dense() == in_store_order(source, holey_screen(seed=1)).X.toarray()
    ).all()


def test_the_store_is_replaced_when_only_the_modification_time_changes(tmp_path):
    path = write_screen(holey_screen(), tmp_path / "s.h5ad")
    PerturbationAnnDataSource(config_of(path))
    inode = (tmp_path / "s.lazypert.zarr").stat().st_ino
    os.utime(path, ns=(1, 1))
    PerturbationAnnDataSource(config_of(path))
    assert (tmp_path / "s.lazypert.zarr").stat().st_ino != inode


def test_the_store_can_lie_in_another_folder(tmp_path):
    path = write_screen(holey_screen(), tmp_path / "data" / "s.h5ad")
    cache = tmp_path / "new" / "cache"
    PerturbationAnnDataSource(config_of(path, cache_dir=cache))
    assert [p.name for p in path.parent.iterdir()] == ["s.h5ad"]
    assert len(list(cache.glob("s*.lazypert.zarr"))) == 1
    inode = next(cache.iterdir()).stat().st_ino
    PerturbationAnnDataSource(config_of(path, cache_dir=cache))
    assert [p.stat().st_ino for p in cache.iterdir()] == [inode]


def test_files_with_the_same_name_get_different_stores(tmp_path):
    sources = []
    for seed, folder in enumerate(("a", "b")):
        path = write_screen(holey_screen(seed=seed), tmp_path / folder / "s.h5ad")
        sources.append(PerturbationAnnDataSource(config_of(path, cache_dir=tmp_path / "cache")))
    for seed, source in enumerate(sources):
        adata = in_store_order(source, holey_screen(seed=seed))
        assert (source.matrix.read_rows(np.arange(40)).to_dense() == adata.X.toarray()).all()


def test_a_store_is_opened_without_conversion(tmp_path):
    path = write_screen(holey_screen(), tmp_path / "s.h5ad")
    store = lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation", cell_type_col="cell_type", batch_col="batch")
    path.unlink()
    assert PerturbationAnnDataSource(config_of(store)).n_rows == 40
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(lp.LazypertError, match=r"none\.h5ad"):
        PerturbationAnnDataSource(PerturbationSourceConfig(file_path=tmp_path / "none.h5ad"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_a_store_raises(tmp_path):
    with pytest.raises(StoreNotFoundError):
        PerturbationAnnDataSource(PerturbationSourceConfig(file_path=tmp_path))


def test_a_folder_that_cannot_be_written_to_names_cache_dir(tmp_path):
    path = write_screen(holey_screen(), tmp_path / "s.h5ad")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache_dir: the store of .*s\.h5ad.* cannot be written .*Set cache_dir to"):
        PerturbationAnnDataSource(config_of(path, cache_dir=tmp_path / "file" / "cache"))
    script = (
        "import os, sys, lazypert as lp; os.chmod(os.path.dirname(sys.argv[1]), 0o555)\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=sys.argv[1]))\n"
        "except lp.LazypertError as error: print(type(error).__name__, error)"
    )
    # A folder that every user may enter, because root may write anywhere.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "screens").mkdir()
        path = write_screen(holey_screen(), Path(folder) / "screens" / "s.h5ad")
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False, env=environment
        )
        assert "ConfigError cache_dir: the store of" in done.stdout, done.stderr
        assert "(Permission denied). Set cache_dir to" in done.stdout
        assert [file.name for file in path.parent.iterdir()] == ["s.h5ad"]


FOUR = """
import logging, os, pathlib, sys, time
import lazypert as lp
import lazypert_converters.h5ad
from lazypert.conversion import convert as module
from tests.support.killer import in_child, wait

path, ready, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
original = module.make_plan

def slow_plan(*args):
    print("converts", flush=True)
    time.sleep(2)
    return original(*args)

def open_source(i):
    for name, fd in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(out / f"{i}.{name}", os.O_WRONLY | os.O_CREAT), fd)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (ready / str(i)).touch()
    while len(list(ready.iterdir())) < 4:
        time.sleep(0.01)
    source = lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=path))
    print(source.n_rows, source.store.content_digest, flush=True)
    return True

# Forks, so that packages are imported only once; this process never starts a thread.
module.make_plan = slow_plan
running = [in_child(open_source, i) for i in range(4)]
print(*(wait(process) for process in running))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_one_of_four_processes_converts_and_the_others_wait(tmp_path):
    path = write_screen(holey_screen(), tmp_path / "s.h5ad")
    (tmp_path / "ready").mkdir()
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", FOUR, str(path), str(tmp_path / "ready"), str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=Path(__file__).parents[2]
    )
    outputs = [tuple((tmp_path / "out" / f"{i}.{name}").read_text() for name in ("stdout", "stderr")) for i in range(4)]
    assert done.stdout.split() == ["0"] * 4, (outputs, done.stderr)
    assert sum("converts" in out for out, _ in outputs) == 1
    assert sum("waiting for another process" in err for _, err in outputs) >= 1
    assert len({out.splitlines()[-1] for out, _ in outputs}) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "ready", "s.h5ad", "s.lazypert.zarr"]
