"""On a screen with batch effects and no effect of perturbations, differences to controls are what chance allows."""

import numpy as np
import pytest

from benchmarks.fairness_statistics import measure, pairs_of
from lazypert import DownsamplingConfig, PerturbationPipeline, PerturbationPipelineConfig
from tests.support.null_screens import null_store

N_CONTROLS = 9600
GROUP_SIZES = (300,) * 20
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module", params=[1, 48], ids="{} batches".format)
def store(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("null")
    return null_store(folder, n_batches=request.param, group_sizes=GROUP_SIZES, n_controls=N_CONTROLS)


@pytest.fixture(scope="module")
def many_batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many_batches")
    return null_store(folder, n_batches=48, group_sizes=GROUP_SIZES, n_controls=N_CONTROLS)


def loader_of(stores, split="train", strategy="random", **options):
    config = PerturbationPipelineConfig(train_frac=0.6, valid_frac=0.2, mapping_strategy=strategy)
    options = {"sentence_size": 64, "sentences_per_batch": 4, "to": "numpy", "shuffle": True} | options
    return PerturbationPipeline(config).setup(stores).loader(split, **options)


@pytest.mark.parametrize("strategy", ["random", "batch"])
@pytest.mark.parametrize("split", SPLITS)
def test_differences_are_those_of_random_samples(store, split, strategy):
    found = measure(loader_of(store, split, strategy))
    is_mixed = strategy == "random"  # controls of the same batch differ less
    assert (0.9 if is_mixed else 0.2) < found.rms_z < 1.15
    assert found.correlation < 0.1
    assert found.n_served > 0.95 * found.n_expected
    assert not is_mixed or found.share_variance < 1.15 or np.isnan(found.share_variance)


def test_several_controls_of_a_cell_are_worth_as_many(many_batches):
    found = measure(loader_of(many_batches, n_basal_samples=16))
    assert found.worth > 0.95 * 16
    assert 0.9 < found.rms_z < 1.15


@pytest.mark.parametrize("strategy", ["random", "batch"])
def test_pools_that_do_not_fit_are_served_in_full(many_batches, strategy):
    loader = loader_of(many_batches, strategy=strategy, memory_limit="150KB")
    assert loader.state_dict()["plan"]["controls_in_reach"] < 300
    found = measure(loader)
    assert found.rms_z < 1.15
    assert found.correlation < 0.1
    # In one epoch, the reach passes through the part of the pool that can be read for a quarter of the cells.
    turns = loader._block_reader.reach.turns
    assert 0.3 < turns < 0.5
    assert found.n_served > 0.8 * turns * N_CONTROLS * 0.6


@pytest.mark.parametrize(
    ("strategy", "memory_limit"),
    [
        ("random", "64MiB"),
        ("batch", "150KB"),  # the pools do not fit
        pytest.param("random", "150KB", marks=pytest.mark.slow),
        pytest.param("batch", "64MiB", marks=pytest.mark.slow),
    ],
)
def test_a_cell_meets_the_same_controls_whatever_the_hosts_threads_and_blocks(many_batches, strategy, memory_limit):
    options = {"strategy": strategy, "memory_limit": memory_limit, "n_basal_samples": 2}
    expected = pairs_of(loader_of(many_batches, **options))
    for changes in ({"shuffle_size": 256}, {"threads": 1}, {"sentences_per_batch": 1}):
        assert pairs_of(loader_of(many_batches, **options, **changes)) == expected
    hosts = [loader_of(many_batches, **options, host=host, n_hosts=3) for host in range(3)]
    assert set().union(*map(pairs_of, hosts)) == expected


def test_a_cell_meets_the_same_controls_whatever_the_order_of_the_store(tmp_path):
    """Cells and controls by name, and which reads are kept."""
    found = []
    for order in ("grouped", "source"):
        store = null_store(tmp_path, n_batches=3, group_sizes=(60,) * 4, n_controls=300, order=order)
        loader = loader_of(store, downsampling=DownsamplingConfig(fraction=0.5))
        names = loader.source.obs_names(np.arange(loader.source.n_rows))
        pairs = {}
        for batch in loader:
            columns = batch.row, batch.control_row[:, 0], batch.counts, batch.controls[:, 0], batch.is_padding
            for row, control, counts, of_control, is_padding in zip(*columns, strict=True):
                if not is_padding:
                    pairs[names[row]] = names[control], counts.tolist(), of_control.tolist()
        found.append(pairs)
    assert found[0] == found[1]


def test_a_cell_that_comes_again_meets_other_controls(many_batches):
    loader = loader_of(many_batches, balance="perturbation", n_basal_samples=1)
    met = {}
    for row, controls in [pair for batch in loader for pair in zip(batch.row, batch.control_row[:, 0], strict=True)]:
        met.setdefault(int(row), []).append(int(controls))
    repeats = [controls for controls in met.values() if len(controls) > 1]
    assert len(repeats) > 100
    assert np.mean([len(set(controls)) / len(controls) for controls in repeats]) > 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n_batches", [1, 8, 48, 200])
@pytest.mark.parametrize("n_datasets", [1, 3])
@pytest.mark.parametrize("size", [32, 64, 512])
def test_differences_on_screens_of_many_shapes(tmp_path, n_batches, n_datasets, size):
    sizes = (100, 1000, 3000, *[300] * 12)
    store = null_store(tmp_path, n_batches=n_batches, group_sizes=sizes, n_controls=9600, n_datasets=n_datasets)
    for strategy in ("random", "batch"):
        for split in SPLITS:
            loader = loader_of(store, split, strategy, sentence_size=size, sentences_per_batch=2)
            found = measure(loader)
            assert found.rms_z < 1.15
            assert strategy == "batch" or found.rms_z > 0.85
            # Eight batches leave seven directions, in which two differences are easily alike by chance.
            assert found.correlation < (0.35 if n_batches == 8 else 0.15)
            assert found.n_served > 0.95 * found.n_expected
