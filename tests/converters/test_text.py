"""Text is the same from every offset, plain or compressed, and damage is refused."""

import gzip

import numpy as np
import pytest

from lazypert.errors import SourceFormatError
from lazypert_converters import _text
from lazypert_converters._text import TextFile, invalid_file, is_gzip


@pytest.fixture
def small_text(monkeypatch):
    """Use text blocks and access points of a few bytes, so that small files have many."""
    monkeypatch.setattr(_text, "_READ_BYTES", 7)
    monkeypatch.setattr(_text, "TEXT_BLOCK_BYTES", 50)
    monkeypatch.setattr(_text, "_ACCESS_STEP", 30)
    monkeypatch.setattr(_text, "_MAX_ACCESS_POINTS", 6)


@pytest.mark.parametrize("packing", ["plain", "one", "members", "padded"])
@pytest.mark.parametrize("is_cold", [True, False], ids=["cold", "warm"])
def test_text_is_the_same_from_every_offset(tmp_path, small_text, packing, is_cold):
    lines = [b"%d %d\n" % (n, n * 7919) for n in range(120)]
    text = b"".join(lines)
    raw = {
        "plain": text,
        "one": gzip.compress(text),
        "members": b"".join(gzip.compress(b"".join(lines[i : i + 9])) for i in range(0, 120, 9)),
        "padded": gzip.compress(text[:100]) + b"\0" * 40 + gzip.compress(text[100:]) + b"\0" * 40,
    }[packing]
    path = tmp_path / "text"
    path.write_bytes(raw)
    file = TextFile(path)
    starts = [0, *np.cumsum([len(line) for line in lines]).tolist()]
    for first in range(0, 120, 13):
        for last in range(first, 121, 17):
            if is_cold:
                file = TextFile(path)
            blocks = list(file.lines(starts[first], starts[last]))
            assert b"".join(block for _, block in blocks) == text[starts[first] : starts[last]]
            assert all(block == text[offset : offset + len(block)] for offset, block in blocks)
            assert all(block.endswith(b"\n") for _, block in blocks)
    assert list(file.lines(len(text))) == []
    if packing != "plain" and not is_cold:
        assert 2 < len(file._access_points) <= 6


def test_a_line_longer_than_a_block_is_refused(tmp_path, small_text):
    (tmp_path / "text").write_bytes(b"1" * 200)
    with pytest.raises(SourceFormatError, match="a line of more than 50 bytes"):
        list(TextFile(tmp_path / "text").lines())


def test_gzip_is_recognised_by_its_signature(tmp_path):
    (tmp_path / "plain.gz").write_bytes(b"text")
    (tmp_path / "packed").write_bytes(gzip.compress(b"text"))
    assert (is_gzip(tmp_path / "plain.gz"), is_gzip(tmp_path / "packed")) == (False, True)


def test_the_error_for_an_invalid_file_says_what_to_do(tmp_path):
    path = tmp_path / "a.tsv"
    assert str(invalid_file(path, "table", "has 1 column", "two")) == (
        f"{str(path)!r} is not a valid table: it has 1 column, expected two. The file is damaged or was written by a "
        "faulty tool; get it again. No store was made."
    )
