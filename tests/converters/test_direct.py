"""Reading without HDF5's lock gives the same values as h5py, and unsupported datasets go through h5py."""

import threading

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazypert_converters import _direct
from lazypert_converters._direct import read_slices

FILTERS = {
    "plain": {},
    "gzip": {"compression": "gzip", "compression_opts": 4},
    "shuffle": {"compression": "gzip", "shuffle": True},
    "only_shuffle": {"shuffle": True},
    "lzf": {"compression": "lzf"},
    "fletcher": {"compression": "gzip", "fletcher32": True},
}


def values_of(n, dtype, seed=0):
    return np.random.default_rng(seed).integers(0, 100, n).astype(dtype)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 500),
    chunk=st.one_of(st.none(), st.integers(1, 600)),
    kind=st.sampled_from(sorted(FILTERS)),
    dtype=st.sampled_from(["f4", ">f4", "f8", "i4", ">i8", "u2", "u1", "f2"]),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_ranges_equal_those_of_numpy_in_any_layout(tmp_path, n, chunk, kind, dtype, cut):
    values = values_of(n, dtype)
    chunks = None if chunk is None and kind == "plain" else (min(n, chunk or 64),)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=chunks, **FILTERS[kind])
    start, stop = sorted(round(fraction * n) for fraction in cut)
    with h5py.File(tmp_path / "a.h5") as file:
        found = read_slices(file["x"], slice(start, stop))
        assert found.dtype == file["x"].dtype
        np.testing.assert_array_equal(found, values[start:stop])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    chunks=st.one_of(st.none(), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    kind=st.sampled_from(sorted(FILTERS)),
    cut=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_tiles_equal_those_of_numpy_in_any_layout(tmp_path, shape, chunks, kind, cut):
    values = values_of(shape[0] * shape[1], "f4").reshape(shape)
    options = {"chunks": tuple(map(min, chunks, shape))} if chunks else {}
    if kind != "plain":
        options |= FILTERS[kind]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, **options)
    rows = slice(*sorted(round(fraction * shape[0]) for fraction in cut[:2]))
    cols = slice(*sorted(round(fraction * shape[1]) for fraction in cut[2:]))
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(read_slices(file["x"], rows, cols), values[rows, cols])


@pytest.mark.parametrize("kind", ["plain", "gzip", "shuffle", "only_shuffle"])
@pytest.mark.parametrize("chunked", [True, False])
def test_common_layouts_bypass_h5py(tmp_path, kind, chunked):
    options = FILTERS[kind] | ({"chunks": (100,)} if chunked else {})
    if kind != "plain" and not chunked:
        options["chunks"] = True
    with h5py.File(tmp_path / "a.h5", "w") as file:
        node = file.create_dataset("x", data=values_of(1000, "f4"), **options)
        file.flush()
        assert _direct._chunks(node, (150,), (270,)) is not None


@pytest.mark.parametrize("kind", ["lzf", "fletcher", "userblock", "unwritten", "virtual", "bool", "external", "core"])
def test_unsupported_datasets_go_through_h5py(tmp_path, kind):
    values = values_of(1000, "f4")
    options = {"userblock_size": 512} if kind == "userblock" else {}
    options |= {"driver": "core", "backing_store": True} if kind == "core" else {}
    with h5py.File(tmp_path / "a.h5", "w", **options) as file:
        if kind in FILTERS:
            file.create_dataset("x", data=values, chunks=(100,), **FILTERS[kind])
        elif kind == "unwritten":
            node = file.create_dataset("x", (1000,), "f4", chunks=(100,), fillvalue=7)
            node[:100], values[100:] = values[:100], 7
        elif kind == "virtual":
            file["y"] = values
            layout = h5py.VirtualLayout((1000,), "f4")
            layout[:] = h5py.VirtualSource(file["y"])
            file.create_virtual_dataset("x", layout)
        elif kind == "bool":
            values = values > 50
            file["x"] = values
        elif kind == "external":
            (tmp_path / "raw").write_bytes(values.tobytes())
            file.create_dataset("x", (1000,), "f4", external=[(str(tmp_path / "raw"), 0, 4000)])
        else:
            file["x"] = values
    with h5py.File(tmp_path / "a.h5", **({"driver": "core"} if kind == "core" else {})) as file:
        assert _direct._chunks(file["x"], (150,), (270,)) is None
        np.testing.assert_array_equal(read_slices(file["x"], slice(150, 420)), values[150:420])


def test_chunks_that_gzip_cannot_shrink_are_read(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, 4000).astype("u1")  # noise
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(1000,), compression="gzip")
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(read_slices(file["x"], slice(500, 3100)), values[500:3100])


@pytest.mark.parametrize("kind", ["plain", "gzip"])
def test_a_truncated_file_raises(tmp_path, kind):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values_of(100_000, "i8"), chunks=(50_000,), **FILTERS[kind])
    with h5py.File(path) as file:
        last = file["x"].id.get_chunk_info(1)
        with path.open("rb+") as raw:
            raw.truncate(last.byte_offset + last.size - 10)
        with pytest.raises(OSError, match="ends before byte"):
            read_slices(file["x"], slice(0, 100_000))


@pytest.mark.parametrize("damage", ["flipped", "garbage"])
def test_a_damaged_chunk_raises(tmp_path, damage):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values_of(10_000, "i8"), chunks=(5_000,), compression="gzip")
    with h5py.File(path) as file:
        info = file["x"].id.get_chunk_info(1)
    raw = bytearray(path.read_bytes())
    if damage == "garbage":
        raw[info.byte_offset : info.byte_offset + info.size] = b"\xff" * info.size
    else:
        raw[info.byte_offset + info.size // 2] ^= 4
    path.write_bytes(raw)
    with h5py.File(path) as file:
        assert len(read_slices(file["x"], slice(0, 5_000))) == 5_000
        with pytest.raises(OSError, match="chunk"):
            read_slices(file["x"], slice(4_000, 6_000))


def test_concurrent_reads_are_correct(tmp_path):
    values, path = values_of(200_000, "f4"), tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(1_000,), compression="gzip")
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        with h5py.File(path) as file:
            for _ in range(20):
                start, stop = np.sort(rng.integers(0, len(values), 2))
                if not np.array_equal(read_slices(file["x"], slice(int(start), int(stop))), values[start:stop]):
                    wrong.append((start, stop))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("chunked", [False, True])
def test_12_bit_integers_go_through_h5py(tmp_path, chunked):
    """HDF5 supports 12-bit integers at a bit offset; NumPy shows them as 16-bit ones."""
    values = np.array([1, 2000, 3, 4], "u2")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        kind = h5py.h5t.STD_U16LE.copy()
        kind.set_precision(12)
        kind.set_offset(4)
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if chunked:
            created.set_chunk((2,))
            created.set_deflate(4)
        node = h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((4,)), created)
        node.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    with h5py.File(tmp_path / "a.h5") as file:
        assert _direct._chunks(file["x"], (0,), (4,)) is None
        np.testing.assert_array_equal(read_slices(file["x"], slice(0, 4)), values)
