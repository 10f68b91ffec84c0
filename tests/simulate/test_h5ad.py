import os

import anndata
import pytest

from lazypert.errors import LazypertError, StoreExistsError, StoreNotFoundError
from lazypert.simulate import reference_screen, sampling, simulate_screen
from tests.support.simulations import small


def test_gzip_stores_the_same_screen_in_less_space(tmp_path):
    simulate_screen(tmp_path / "plain.h5ad", small())
    simulate_screen(tmp_path / "gzip.h5ad", small(compression="gzip"))
    plain, gzip = (anndata.read_h5ad(tmp_path / name) for name in ("plain.h5ad", "gzip.h5ad"))
    assert (plain.X != gzip.X).nnz == 0
    assert plain.obs.equals(gzip.obs)
    assert (tmp_path / "gzip.h5ad").stat().st_size < 0.6 * (tmp_path / "plain.h5ad").stat().st_size


def test_a_single_cell_with_more_labels_than_int8_can_number(tmp_path):
    truth = simulate_screen(tmp_path / "a.h5ad", small(n_cells=1, n_perturbations=180))
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert data.shape == (1, 200)
    assert len(data.obs["perturbation"].cat.categories) == 182
    assert truth.group_cells.sum() == 1


@pytest.mark.parametrize("write", [reference_screen, lambda p, **k: simulate_screen(p, small(), **k)])
def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path, write):
    path = tmp_path / "a.h5ad"
    path.write_bytes(b"precious")
    with pytest.raises(StoreExistsError, match="overwrite=True") as caught:
        write(path)
    assert isinstance(caught.value, FileExistsError)
    assert path.read_bytes() == b"precious"
    write(path, overwrite=True)
    assert anndata.read_h5ad(path).n_obs == 900
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(StoreNotFoundError, match="nowhere"):
        reference_screen(tmp_path / "nowhere" / "a.h5ad")


def test_a_failure_leaves_the_old_file_and_no_temporary_file(tmp_path, monkeypatch):
    path = reference_screen(tmp_path / "a.h5ad")
    before = path.read_bytes()

    sample_block = sampling._sample_block

    def failing(model, config, first):
        if first:
            raise LazypertError("the second block fails")
        return sample_block(model, config, first)

    monkeypatch.setattr(sampling, "_sample_block", failing)
    with pytest.raises(LazypertError, match="second block"):
        simulate_screen(path, small(), overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.h5ad", []

    def fsync(descriptor):
        (partial,) = tmp_path.iterdir()
        assert os.path.samestat(os.fstat(descriptor), partial.stat())
        synced.append(partial.read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    reference_screen(path)
    assert synced == [path.read_bytes()]
