import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazypert._internal.memory import MINIMUM_LIMIT, Budget, cpu_count, format_bytes, parse_bytes
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
def test_reads_sizes(size, expected):
    assert parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "lots", "1 XB", "-1GB", "1e9", "GiB", None, True, 1.5, b"1GB"], ids=repr)
def test_refuses_what_is_no_size(size):
    with pytest.raises(ConfigError, match="Not a size in bytes"):
        parse_bytes(size)


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
def test_prints_sizes(size, text):
    assert format_bytes(size) == text


@given(st.integers(0, 2**45))
def test_printed_sizes_can_be_read(size):
    assert abs(parse_bytes(format_bytes(size)) - size) <= 0.06 * max(size, 1)


def test_a_budget_is_shared_by_its_workers():
    budget = Budget.of("1GiB", workers=4)
    assert (budget.limit, budget.workers, budget.per_task) == (2**30, 4, 2**28)


def test_a_small_budget_gets_few_workers():
    assert Budget.of(MINIMUM_LIMIT).workers == 1
    assert Budget.of("100GiB").workers == cpu_count()


def test_a_budget_below_one_shard_is_refused():
    with pytest.raises(ConfigError, match=r"expected at least 64\.0 MiB"):
        Budget.of(MINIMUM_LIMIT - 1)


def test_counts_at_least_one_processor():
    assert cpu_count() >= 1
