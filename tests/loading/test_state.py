"""Iterations resume from a saved state with the same batches, and states of other loaders are rejected."""

import json

import numpy as np
import pytest

from lazypert.downsampling.config import DownsamplingConfig
from lazypert.errors import ConfigError
from lazypert.loading.state import STATE_VERSION, Position, restore_position, save_state
from tests.support.loaders import loader_of, loader_threads, same_batch, whole_loader
from tests.support.stores import screen, write


@pytest.mark.parametrize("options", [{}, "all"], ids=["dense", "all"])
def test_batches_are_the_same_when_resumed_at_any_step(source, options, request):
    options = request.getfixturevalue("all_options") if options == "all" else options
    options |= {"sentence_size": 16, "sentences_per_batch": 8, "shuffle_size": 400}
    loader = loader_of(source, **options)
    loader.set_epoch(1)
    batches, states = [], [loader.state_dict()]
    for batch in loader:
        batches.append(batch)
        states.append(loader.state_dict())
    assert len(batches) > 6
    for step, state in enumerate(states):
        other = loader_of(source, **options)
        other.load_state_dict(json.loads(json.dumps(state)))
        if step == len(batches):
            assert other.state_dict() == state | {"epoch": 2, "step": 0}
            continue
        assert other.state_dict() == state
        rest = list(other)
        assert len(rest) == len(batches) - step
        assert all(same_batch(a, b) for a, b in zip(rest, batches[step:], strict=True))
        assert other.state_dict()["step"] == len(batches)


def test_the_epoch_after_a_resumed_one_is_complete(source):
    loader = loader_of(source)
    n = len(loader)
    loader.load_state_dict(loader.state_dict() | {"step": n - 2})
    assert [len(list(loader)) for _ in range(2)] == [2, n]


def test_iterating_again_goes_on_to_the_next_epoch(source):
    loader = loader_of(source)
    epochs = [[np.asarray(batch.row).tolist() for batch in loader] for _ in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 3
    loader.set_epoch(1)
    assert [np.asarray(batch.row).tolist() for batch in loader] == epochs[1]
    next(iter(loader))  # an iteration that is abandoned counts too
    assert loader.epoch == 3


def test_evaluation_repeats_its_epoch(source):
    loader = loader_of(source, shuffle=False)
    first, second = list(loader), list(loader)
    assert all(same_batch(a, b) for a, b in zip(first, second, strict=True))
    loader.load_state_dict(loader.state_dict())
    assert len(list(loader)) == len(first)


def test_setting_the_epoch_of_a_restored_position_keeps_its_step(source):
    loader = loader_of(source)
    loader.set_epoch(2)
    batches = iter(loader)
    next(batches), next(batches)
    state, expected = loader.state_dict(), next(batches)
    other = loader_of(source)
    other.load_state_dict(state)
    other.set_epoch(2)
    assert same_batch(next(iter(other)), expected)
    other.load_state_dict(state)
    other.set_epoch(1)
    assert other.state_dict() == state | {"epoch": 1, "step": 0}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"genes": ["g1", "g2"]}, "features"),
        ({"target_sum": 1e4}, "features"),
        ({"downsampling": DownsamplingConfig(fraction=0.5)}, "features"),
        ({"sentences_per_batch": 5}, "sentences_per_batch"),
        ({"n_basal_samples": 3}, "n_basal_samples"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_states_of_other_options_are_rejected(source, options, name):
    if "genes" in options:
        options = {"genes": list(source.var.index[:2])}
    state = loader_of(source).state_dict()
    with pytest.raises(ConfigError, match=f"saved with {name}="):
        loader_of(source, **options).load_state_dict(state)


def test_the_state_of_another_screen_of_the_same_shape_is_rejected(tmp_path):
    loaders = []
    for seed in (0, 1):
        adata = screen(120, seed=seed)
        loaders.append(whole_loader(write(adata, tmp_path / f"s{seed}.h5ad"))())
    with pytest.raises(ConfigError, match="saved with stores="):
        loaders[1].load_state_dict(loaders[0].state_dict())


def test_iterators_get_and_set_their_state(source):
    loader = loader_of(source)
    first = iter(loader)
    for _ in range(3):
        next(first)
    state = first.get_state()
    rest = list(first)
    other = iter(loader)
    next(other)
    other.set_state(state)
    assert loader_threads() == []
    assert all(same_batch(a, b) for a, b in zip(other, rest, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, r"expected the result of state_dict\(\)"),
        ({"step": -1}, r"state\['step'\]: got -1"),
        ({"step": 1000}, r"state\['step'\]: got 1000, expected at most \d+, the number of batches of an epoch"),
        ({"epoch": None}, r"state\['epoch'\]: got None"),
        ({"plan": {}}, "saved with sentence_size=None"),
        ({"plan": None}, "saved with sentence_size=None"),
    ],
)
def test_states_of_other_versions_and_loaders_are_rejected(source, change, message):
    loader = loader_of(source)
    with pytest.raises(ConfigError, match=message):
        loader.load_state_dict(loader.state_dict() | change)
    with pytest.raises(ConfigError, match="saved with sentence_size=7, expected 8 as in this loader"):
        loader_of(source, sentence_size=8).load_state_dict(loader.state_dict())
    with pytest.raises(ConfigError, match=r"expected the result of state_dict\(\)"):
        loader.load_state_dict("epoch 3")


def test_a_state_survives_json_and_names_what_differs():
    fingerprint = {"sentence_size": 7, "controls_in_reach": 100}
    state = json.loads(json.dumps(save_state(Position(epoch=2, step=5), fingerprint)))
    assert state == {"version": STATE_VERSION, "epoch": 2, "step": 5, "plan": fingerprint}
    assert restore_position(state, fingerprint, lambda epoch: 3 + epoch) == Position(epoch=2, step=5)
    with pytest.raises(ConfigError, match="saved with controls_in_reach=100, expected 50 as in this loader"):
        restore_position(state, fingerprint | {"controls_in_reach": 50}, lambda _: 9)


class TestGrain:
    """Grain can checkpoint the iterator."""

    @pytest.fixture
    def dataset(self, source):
        grain = pytest.importorskip("grain")

        class Batches(grain.DatasetIterator):
            def __init__(self, batches):
                super().__init__()
                self._batches = batches

            def __next__(self):
                return next(self._batches)

            def get_state(self):
                return self._batches.get_state()

            def set_state(self, state):
                self._batches.set_state(state)

        class Sentences(grain.IterDataset):
            def __iter__(self):
                return Batches(iter(loader_of(source)))

        return Sentences()

    def test_maps_and_resumes(self, source, dataset):
        totals = dataset.map(lambda batch: float(batch.counts.sum()))
        expected = [float(batch.counts.sum()) for batch in loader_of(source)]
        batches = iter(totals)
        assert [next(batches) for _ in range(3)] == expected[:3]
        state = json.loads(json.dumps(batches.get_state()))
        other = iter(totals)
        other.set_state(state)
        assert list(other) == expected[3:]
