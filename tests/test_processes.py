"""Loaders, Datasets and splits in child processes, started in each way: the same batches, or a clear error."""

import multiprocessing
import pickle
import sys
import warnings

import numpy as np
import pytest

import lazypert as lp
from lazypert.errors import ConfigError
from tests.support.loaders import loader_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="has no fork")]
SECONDS = 120


def batch_sums(iterable, n=3):
    return [np.asarray(batch.counts).sum(axis=-1).tolist() for _, batch in zip(range(n), iterable, strict=False)]


def summarise(kind, thing):
    if kind == "loader":
        return batch_sums(thing)
    if kind == "dataset":
        return float(thing.X[:40].sum().compute()), len(thing.pert.table())
    return np.asarray(thing.train_indices[:]).tolist()


def child(kind, thing, pipe):
    try:
        pipe.send(summarise(kind, thing))
    except BaseException as error:  # noqa: BLE001 - raised in the parent
        pipe.send(error)


def in_child(method, kind, thing):
    """What `summarise` gives in a child, which must answer in time."""
    context = multiprocessing.get_context(method)
    mine, its = context.Pipe()
    process = context.Process(target=child, args=(kind, thing, its))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks with threads
        process.start()
    try:
        assert mine.poll(SECONDS), "the child hangs"
        found = mine.recv()
    finally:
        process.kill()
        process.join()
    if isinstance(found, BaseException):
        raise found
    return found


@pytest.fixture(scope="module")
def things(reference):
    dataset = lp.open(reference.store)
    loader = loader_of(reference.source, to="numpy", layout="dense")
    return {"loader": loader, "dataset": dataset, "splits": dataset.pert.split("random")}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["loader", "dataset", "splits"])
def test_children_read_what_the_parent_reads(things, method, kind):
    thing = things[kind]
    expected = summarise(kind, pickle.loads(pickle.dumps(thing)))
    assert in_child(method, kind, thing) == expected


def test_a_fork_while_threads_read_does_not_hang(things):
    loader = pickle.loads(pickle.dumps(things["loader"]))
    expected = batch_sums(pickle.loads(pickle.dumps(loader)), 6)
    batches = iter(loader)
    assert batch_sums(batches, 2) == expected[:2]  # its threads go on reading
    for _ in range(5):
        assert in_child("fork", "loader", batches) == expected[2:5]
    assert batch_sums(batches, 2) == expected[2:4]


def test_jax_batches_in_a_forked_child_are_refused(reference):
    loader = loader_of(reference.source)
    next(iter(loader))
    with pytest.raises(ConfigError, match=r"forked after JAX was imported.*'spawn' or 'forkserver'"):
        in_child("fork", "loader", loader)
