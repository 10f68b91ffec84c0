"""The kernel and the libraries' Python interfaces decode the same elements and report the same damage."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazypert._internal.files import write_atomic
from lazypert.errors import MachineError, StoreDamagedError
from lazypert.store import native
from lazypert.store.byte_reader import LocalReader
from lazypert.store.encoded_chunks import PROBLEMS, checksum
from lazypert.store.format import CODEC, COUNTS_CODEC, DELTA_CODEC, NARROW_DELTA_CODEC, Grid
from lazypert.store.shard_encoding import encode_shard
from lazypert.store.sharded_array import ShardedArray
from tests.support.native import hide_native_functions
from tests.support.stores import flip

pytestmark = pytest.mark.skipif(native.FUNCTIONS is None, reason="this build hides the codecs' functions")

GRID = Grid(5_000, 512, 2_048)
KINDS = {
    "u2": COUNTS_CODEC, "i4": CODEC, "i8": CODEC, "f4": CODEC, "bool": CODEC,
    "delta_u2": NARROW_DELTA_CODEC, "delta_i4": DELTA_CODEC, "delta_i8": DELTA_CODEC,
}  # fmt: skip


def in_memory(root):
    """Reader whose bytes are in memory before they are decoded, as those of remote objects are."""
    return LocalReader(root, has_files=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("arrays")
    for kind, codec in KINDS.items():
        (root / kind / "c").mkdir(parents=True)
        values = values_of(kind)
        for shard in range(GRID.n_shards):
            start, stop = GRID.span(shard)
            write_atomic(root / kind / f"c/{shard}", encode_shard(values[start:stop], GRID, codec))
    return root


def values_of(kind):
    dtype, rng = kind.removeprefix("delta_"), np.random.default_rng(3)
    if kind == dtype:
        return rng.poisson(2.0, GRID.length).astype(dtype)
    return np.sort(rng.integers(0, 2**16, (GRID.length // 50, 50)), axis=1).ravel().astype(dtype)  # rows of columns


def array(root, kind, reader=LocalReader):
    codec, dtype = KINDS[kind], kind.removeprefix("delta_")
    return ShardedArray(reader(Path(root)), kind, np.dtype(dtype), GRID, is_delta=codec.is_delta)


bounds = st.lists(st.integers(0, GRID.length), min_size=2, max_size=24).map(sorted)


def test_checksum_is_crc32c():
    assert checksum(b"123456789") == (0xE3069283).to_bytes(4, "little")  # the check value of CRC-32C


@pytest.mark.parametrize("way", ["files", "memory", "python"])
@pytest.mark.parametrize("kind", KINDS)
@given(bounds=bounds, gap=st.integers(0, 9), backwards=st.booleans())
@settings(max_examples=25, deadline=None)
def test_ranges_are_written_to_their_offsets(folder, kind, way, bounds, gap, backwards):
    """Any ranges, also empty and adjacent ones, in any order and with gaps, which are left alone."""
    starts, stops = (np.array(bounds[at : len(bounds) // 2 * 2 : 2], dtype=np.int64) for at in (0, 1))
    lengths = stops - starts
    layout_order = np.arange(len(starts))[:: -1 if backwards else 1]
    offsets = np.empty(len(starts), dtype=np.int64)
    offsets[layout_order] = np.cumsum(lengths[layout_order] + gap) - lengths[layout_order] - gap
    values = values_of(kind)
    out = np.full(int((lengths + gap).sum()), 7).astype(values.dtype)
    expected = out.copy()
    for start, stop, offset in zip(starts, stops, offsets, strict=True):
        expected[offset : offset + stop - start] = values[start:stop]
    with pytest.MonkeyPatch.context() as patch:
        if way == "python":
            hide_native_functions(patch)
        array(folder, kind, in_memory if way == "memory" else LocalReader).gather(starts, stops, offsets, out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "python"])
def test_integers_can_be_read_as_narrower_ones(folder, compiled, monkeypatch):
    if not compiled:
        hide_native_functions(monkeypatch)
    out = np.zeros(1_000, np.uint16)
    array(folder, "i4").gather(*(np.array([n]) for n in (300, 1_300, 0)), out)
    np.testing.assert_array_equal(out, values_of("i4")[300:1_300])


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("files", [1, 2])
def test_results_do_not_depend_on_the_steps_of_a_read(folder, chunks, files, monkeypatch):
    monkeypatch.setattr(ShardedArray, "MAX_CHUNKS_IN_MEMORY", chunks)
    monkeypatch.setattr(ShardedArray, "MAX_OPEN_FILES", files)
    for reader in (LocalReader, in_memory):
        np.testing.assert_array_equal(array(folder, "u2", reader).read(17, 4_900), values_of("u2")[17:4_900])


def test_chunks_are_read_into_memory_when_too_many_files_are_open(folder, monkeypatch):
    def fail(self, keys, ranges):
        raise OSError(errno.EMFILE, "Too many open files", keys[0])

    monkeypatch.setattr(LocalReader, "open_files", fail)
    np.testing.assert_array_equal(array(folder, "u2").read(17, 4_900), values_of("u2")[17:4_900])


def damaged(folder, tmp_path, how):
    path = tmp_path / "u2/c/0"
    path.parent.mkdir(parents=True)
    good = (folder / "u2/c/0").read_bytes()
    path.write_bytes(good)
    ours = array(tmp_path, "u2")
    ours.read(0, 10)  # caches the index before the damage
    if how == "flipped":
        flip(path, 8 * 40)
    elif how == "cut":
        path.write_bytes(good[:100])
    elif how == "gone":
        path.unlink()
    elif how == "another array":
        (body,) = encode_shard(np.zeros(64, "u4"), Grid(64, 64, 64))[:1]
        index = np.array([[0, len(body)]] + 3 * [[2**64 - 1] * 2], "<u8").tobytes()
        path.write_bytes(body + index + checksum(index))
        ours = array(tmp_path, "u2")
    return ours


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flipped", "c/0: the checksum of chunk 0 does not match"),
        ("cut", "c/0: the file is cut short"),
        ("gone", "c/0: the file is missing"),
        ("another array", "c/0: chunk 0 decodes to 256 bytes, so it belongs to another array"),
    ],
)
@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "python"])
def test_damage_is_reported(folder, tmp_path, how, message, compiled, monkeypatch):
    ours = damaged(folder, tmp_path, how)
    if not compiled:
        hide_native_functions(monkeypatch)
    if how == "gone" and not compiled:
        message = "c/0: the file is cut short"  # by all of its bytes
    with pytest.raises(StoreDamagedError, match=message):
        ours.read(0, 400)


UNREADABLE = Path("/proc/self/mem")
"""A file that opens, and whose first bytes cannot be read: Linux answers with EIO."""


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs /proc/self/mem")
@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "python"])
def test_a_failing_disk_is_not_damage(folder, tmp_path, compiled, monkeypatch):
    ours = damaged(folder, tmp_path, "none")
    (tmp_path / "u2/c/0").unlink()
    (tmp_path / "u2/c/0").symlink_to(UNREADABLE)
    if not compiled:
        hide_native_functions(monkeypatch)
    with pytest.raises(MachineError, match=r"'u2/c/0' cannot be read now .*Input/output error.*not mean that it is da"):
        ours.read(0, 400)


def test_a_read_that_fails_once_is_not_damage(folder, tmp_path):
    ours = damaged(folder, tmp_path, "none")
    with pytest.raises(MachineError, match="a read failed, and succeeded when repeated"):
        ours.raise_damage((0, PROBLEMS[5]), np.array([0]))


def test_files_are_closed_after_reads_and_errors(folder, tmp_path):
    opened = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    ours = damaged(folder, tmp_path, "flipped")
    for _ in range(5):
        with pytest.raises(StoreDamagedError):
            ours.read(0, 400)
    array(folder, "u2").read(0, GRID.length)
    with pytest.raises(StoreDamagedError):
        array(tmp_path, "u2").read(0, GRID.length)  # shards 1 and 2 do not exist
    if opened:
        assert len(list(Path("/proc/self/fd").iterdir())) == opened


class TestVerifiedChunks:
    """Once the checksum of a chunk was found right, only the Blosc blocks that are needed are read."""

    GRID = Grid(150_000, 65_536, 131_072)  # sixteen blocks per chunk of counts

    @pytest.fixture(params=[COUNTS_CODEC, NARROW_DELTA_CODEC], ids=["plain", "delta"])
    def codec(self, request):
        return request.param

    @pytest.fixture
    def folder(self, tmp_path, codec):
        (tmp_path / "u2" / "c").mkdir(parents=True)
        for shard in range(self.GRID.n_shards):
            start, stop = self.GRID.span(shard)
            write_atomic(tmp_path / f"u2/c/{shard}", encode_shard(self.values[start:stop], self.GRID, codec))
        return tmp_path

    @property
    def values(self):
        return np.random.default_rng(3).poisson(2.0, self.GRID.length).astype("u2")

    @pytest.fixture(autouse=True)
    def _set_codec(self, codec):
        self.is_delta = codec.is_delta

    def array(self, folder):
        return ShardedArray(LocalReader(folder), "u2", np.dtype("u2"), self.GRID, is_delta=self.is_delta)

    def chunk(self, folder, number):
        """File of a chunk, and where it lies in it."""
        shard, within = divmod(number, 2)
        offset, length = self.array(folder).indexes.read([shard])[0][within].tolist()
        return folder / f"u2/c/{shard}", offset, length

    def damage(self, path, offset):
        """Flip a bit without a trace in the file's metadata."""
        stat = path.stat()
        flip(path, 8 * offset)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    @given(st.lists(st.integers(0, 150_000), min_size=2, max_size=40).map(sorted))
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_ranges_read_by_block_equal_those_of_whole_chunks(self, folder, bounds):
        starts, stops = (np.array(bounds[n : len(bounds) // 2 * 2 : 2], dtype=np.int64) for n in (0, 1))
        offsets, values = np.cumsum(stops - starts) - (stops - starts), self.values
        expected = np.concatenate([values[a:b] for a, b in zip(starts, stops, strict=True)])
        array = self.array(folder)
        for _ in range(2):
            out = np.zeros(len(expected), "u2")
            array.gather(starts, stops, offsets, out)
            np.testing.assert_array_equal(out, expected)

    def test_the_first_read_of_a_chunk_verifies_all_of_it(self, folder):
        path, offset, length = self.chunk(folder, 0)
        flip(path, 8 * (offset + length - 100))
        with pytest.raises(StoreDamagedError, match="checksum of chunk 0"):
            self.array(folder).read(0, 5)

    def test_later_reads_leave_out_blocks_that_are_not_needed(self, folder):
        array, (path, offset, length) = self.array(folder), self.chunk(folder, 0)
        array.read(0, 5)
        self.damage(path, offset + length - 100)
        np.testing.assert_array_equal(array.read(10, 5_000), self.values[10:5_000])
        with pytest.raises(StoreDamagedError, match="checksum of chunk 0"):
            array.read(0, 65_536)  # a whole chunk is read in one piece, and verified

    def test_a_file_that_changed_is_verified_again(self, folder):
        array, (path, offset, length) = self.array(folder), self.chunk(folder, 0)
        array.read(0, 5)
        flip(path, 8 * (offset + length - 100))
        with pytest.raises(StoreDamagedError, match="checksum of chunk 0"):
            array.read(10, 20)

    def test_a_damaged_head_falls_back_to_the_whole_chunk(self, folder):
        array, (path, offset, _) = self.array(folder), self.chunk(folder, 0)
        array.read(0, 5)
        self.damage(path, offset + 5)  # in the header's sizes
        with pytest.raises(StoreDamagedError, match="checksum of chunk 0"):
            array.read(10, 20)

    @pytest.mark.parametrize("offset", range(16, 80, 4))
    def test_damaged_block_offsets_never_give_wrong_values(self, folder, offset):
        array, (path, start, _) = self.array(folder), self.chunk(folder, 0)
        array.read(0, 5)
        self.damage(path, start + offset)
        with suppress(StoreDamagedError):
            np.testing.assert_array_equal(array.read(30_000, 30_010), self.values[30_000:30_010])

    def test_chunks_that_blosc_could_not_compress_are_read_whole(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 2**16, 65_536).astype("u2")
        grid = Grid(65_536, 65_536, 65_536)
        (tmp_path / "u2" / "c").mkdir(parents=True)
        write_atomic(tmp_path / "u2/c/0", encode_shard(values, grid, COUNTS_CODEC))
        array = ShardedArray(LocalReader(tmp_path), "u2", np.dtype("u2"), grid)
        for _ in range(2):
            np.testing.assert_array_equal(array.read(40_000, 40_100), values[40_000:40_100])

    def test_blocks_may_be_stored_in_any_order(self, folder):
        """C-Blosc's threads store blocks as they finish them, which is valid."""
        path, offset, length = self.chunk(folder, 0)
        chunk = bytearray(path.read_bytes()[offset : offset + length - 4])
        n_blocks, head = 16, 16 + 4 * 16
        starts = [int.from_bytes(chunk[16 + 4 * k : 20 + 4 * k], "little") for k in range(n_blocks)]
        bodies = [bytes(chunk[a:b]) for a, b in zip(starts, [*starts[1:], len(chunk)], strict=True)]
        order, at, body = list(reversed(range(n_blocks))), head, b""
        for k in order:
            chunk[16 + 4 * k : 20 + 4 * k] = at.to_bytes(4, "little")
            body, at = body + bodies[k], at + len(bodies[k])
        moved = bytes(chunk[:head]) + body
        content = bytearray(path.read_bytes())
        content[offset : offset + length] = moved + checksum(moved)
        path.write_bytes(content)
        array = self.array(folder)
        for start, stop in [(0, 5), (100, 9_000), (20_000, 20_010), (60_000, 65_536), (3, 65_000)] * 2:
            np.testing.assert_array_equal(array.read(start, stop), self.values[start:stop])
