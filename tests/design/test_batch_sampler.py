"""The sampler yields the batches of a plan as lists of split indices."""

import pytest

from lazypert import PerturbationBatchSampler, PerturbationSamplerConfig
from lazypert.errors import ConfigError
from tests.support.plans import plan_of


class TestSampler:
    def test_yields_lists_of_split_indices(self):
        sampler = PerturbationBatchSampler(
            PerturbationSamplerConfig(sentence_size=3, sentences_per_batch=2), [0, 1, 1, 1, 0, 0, 2]
        )
        batches = list(sampler)
        assert len(batches) == len(sampler) == 2
        assert [len(batch) for batch in batches] == [6, 3]
        assert all(type(index) is int for batch in batches for index in batch)

    def test_each_iteration_goes_on_to_the_next_epoch(self):
        sampler = PerturbationBatchSampler(PerturbationSamplerConfig(sentence_size=3), [0] * 30)
        first, second = list(sampler), list(sampler)
        assert second != first
        sampler.set_epoch(0)
        assert [list(sampler), list(sampler)] == [first, second]

    def test_the_sentence_size_is_chosen_from_the_group_sizes(self):
        sampler = PerturbationBatchSampler(PerturbationSamplerConfig(), [0] * 40 + [1] * 80)
        assert sampler.config.sentence_size == 80

    def test_accepts_a_plan(self):
        plan = plan_of([0, 0, 1], 2)
        assert list(PerturbationBatchSampler(plan.config, plan)) == list(
            PerturbationBatchSampler(plan.config, [0, 0, 1])
        )

    @pytest.mark.parametrize("codes", [[], [-1, -1]], ids=["no cell", "no group"])
    def test_is_empty_without_cells(self, codes):
        assert list(PerturbationBatchSampler(PerturbationSamplerConfig(), codes)) == []


def test_negative_epochs_are_refused():
    with pytest.raises(ConfigError, match="epoch: got -1"):
        PerturbationBatchSampler(PerturbationSamplerConfig(), [0]).set_epoch(-1)


def test_repr_shows_the_size_of_an_epoch():
    sampler = PerturbationBatchSampler(PerturbationSamplerConfig(sentence_size=2, sentences_per_batch=3), [0] * 20)
    assert repr(sampler) == "PerturbationBatchSampler(4 batches of 3 x 2 cells, epoch 0)"
