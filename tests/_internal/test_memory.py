import io
import subprocess
import sys

import dask.system
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazypert._internal import memory
from lazypert._internal.memory import (
    MINIMUM_LIMIT,
    Budget,
    cpu_count,
    default_threads,
    format_bytes,
    machine_memory,
    parse_bytes,
    peak_memory,
    release_memory,
)
from lazypert.errors import ConfigError


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1000, 1000),
        ("1000", 1000),
        ("256MiB", 256 * 2**20),
        ("1.5 GB", 1_500_000_000),
        (" 2 gib ", 2 * 2**30),
        ("1k", 1000),
        ("1KiB", 1024),
        ("3TB", 3 * 10**12),
        ("0", 0),
    ],
    ids=repr,
)
def test_parse_bytes_reads_sizes(size, expected):
    assert parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "lots", "1 XB", "-1GB", "1e9", "GiB", None, True, 1.5, b"1GB"], ids=repr)
def test_parse_bytes_refuses_other_values(size):
    with pytest.raises(ConfigError, match=r"^cache: got .*, expected a size in bytes, such as .*'256MiB' or '1GB'\.$"):
        parse_bytes(size, "cache")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (2**30, "1.0 GiB"),
        (3 * 2**40, "3.0 TiB"),
    ],
    ids=str,
)
def test_format_bytes_chooses_a_unit(size, text):
    assert format_bytes(size) == text


@given(st.integers(0, 2**45))
def test_formatted_sizes_can_be_parsed(size):
    assert abs(parse_bytes(format_bytes(size)) - size) <= 0.06 * max(size, 1)


def test_memory_can_be_measured_and_released():
    release_memory()
    assert peak_memory() > 2**20


@pytest.mark.parametrize(("limit", "expected"), [("1048576\n", 2**20), ("max\n", None), (None, None)], ids=repr)
def test_machine_memory_respects_the_limit_of_a_container(tmp_path, monkeypatch, limit, expected):
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", ())
    total = machine_memory()
    assert total > 2**28
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (tmp_path / "memory.max",))
    assert machine_memory() == (expected or total)


def test_a_budget_is_divided_among_its_workers():
    budget = Budget.of("1GiB", workers=4)
    assert (budget.limit, budget.workers, budget.per_task) == (2**30, 4, 2**28)


def test_a_small_budget_gets_few_workers():
    assert Budget.of(MINIMUM_LIMIT).workers == 1
    assert Budget.of("100GiB").workers == cpu_count()


def test_a_budget_that_is_too_small_for_one_shard_is_refused():
    with pytest.raises(ConfigError, match=r"^memory_limit: got 67108863 .*, expected at least 64\.0 MiB"):
        Budget.of(MINIMUM_LIMIT - 1)


def test_cpu_count_is_at_least_one():
    assert cpu_count() >= 1


@pytest.mark.parametrize(("processors", "threads"), [(1, 1), (2, 3), (7, 8), (64, 8)])
def test_default_threads_are_one_more_than_the_processors_except_for_a_single_one(monkeypatch, processors, threads):
    monkeypatch.setattr(memory, "cpu_count", lambda: processors)
    assert default_threads() == threads


def container(monkeypatch, files):
    """Let dask.system read these files of a container's cgroup; 16 processors are on the machine."""

    def fake_open(path):
        if path not in files:
            raise FileNotFoundError(path)
        return io.StringIO(files[path])

    monkeypatch.setattr(dask.system, "open", fake_open, raising=False)
    monkeypatch.setattr(dask.system, "psutil", None)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr("os.process_cpu_count", lambda: 16, raising=False)


V1 = "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_"


@pytest.mark.skipif(sys.platform != "linux", reason="cgroups are part of Linux")
@pytest.mark.parametrize(
    ("files", "processors", "threads"),
    [
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "100000 100000"}, 1, 1),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "50000 100000"}, 1, 1),
        ({"/proc/self/cgroup": "0::/pod", "/sys/fs/cgroup/pod/cpu.max": "300000 100000"}, 3, 4),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "max 100000"}, 16, 8),
        ({f"{V1}quota_us": "100000", f"{V1}period_us": "100000"}, 1, 1),
        ({}, 16, 8),
    ],
    ids=["one", "half", "three in a pod", "unlimited", "version 1", "no cgroup"],
)
def test_the_quota_of_a_container_decides_the_default_threads(monkeypatch, files, processors, threads):
    container(monkeypatch, files)
    assert cpu_count() == processors
    assert default_threads() == threads
    assert Budget.of("100GiB").workers == processors


@pytest.mark.skipif(sys.platform != "linux", reason="needs sched_setaffinity")
def test_a_process_that_is_bound_to_one_processor_gets_one_thread():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from lazypert._internal.memory import Budget, cpu_count, default_threads\n"
        "print(cpu_count(), default_threads(), Budget.of('100GiB').workers)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["1", "1", "1"]
