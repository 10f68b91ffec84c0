"""Pickles and copies of public objects give what the objects themselves give, also in a spawned process."""

import copy
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import lazypert as lp
from tests.support.loaders import loader_of, loader_threads, same_batch

COPIES = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "copy": copy.copy, "deepcopy": copy.deepcopy}

copies = pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)


def first_rows(matrix):
    return matrix.read_rows(np.arange(40)[::-3]).to_dense(np.float32).tolist()


def batch_lists(sampler):
    return [np.asarray(batch).tolist() for batch in sampler]


# What each object is asked, and a function of the objects of one screen that makes it.
OBJECTS = {
    "source": (lambda s: s.source, lambda source: source.batch(np.arange(5))["counts"].tolist()),
    "concat source": (lambda s: s.concat, lambda source: source.batch(np.array([3, 900]))["counts"].tolist()),
    "store": (lambda s: s.source.stores[0], lambda store: (store.content_digest, first_rows(store.open_matrix("X")))),
    "matrix": (lambda s: s.source.matrix, first_rows),
    "matrix of several stores": (lambda s: s.concat.matrix, first_rows),
    "result": (lambda s: s.result, lambda result: (result.splits.digest, result.control_mapping.tolist())),
    "splits": (lambda s: s.result.splits, lambda splits: splits.test_indices[:].tolist()),
    "knockdown": (lambda s: s.result.knockdown, lambda knockdown: (knockdown.mask.tolist(), len(knockdown.table))),
    "sampler": (lambda s: s.result.train_sampler, batch_lists),
    "config": (lambda s: s.result.config, repr),
    "pipeline": (lambda s: lp.PerturbationPipeline(s.result.config), lambda pipeline: repr(pipeline.config)),
    "Dataset": (lambda s: s.dataset, lambda ds: (float(ds.X[:50].sum().compute()), len(ds.pert.table()))),
    "batch": (lambda s: s.batch, lambda batch: (np.asarray(batch.counts).tolist(), list(batch.barcodes()))),
    "sparse batch": (lambda s: s.sparse_batch, lambda batch: np.asarray(batch.counts.to_dense()).tolist()),
}  # fmt: skip


class Screen:
    """The objects of one screen."""

    def __init__(self, reference):
        self.source = reference.source
        self.concat = lp.PerturbationConcatSource([reference.source, reference.source], names=["a", "b"])
        config = lp.PerturbationPipelineConfig(sentence_size=8, enable_knockdown_filter=True, var_gene_col="gene_name")
        self.result = lp.PerturbationPipeline(config).setup([reference.store])
        self.dataset = lp.open(reference.store)
        self.batch = next(iter(loader_of(reference.source, extras=("barcode",))))
        self.sparse_batch = next(iter(loader_of(reference.source, layout="csr", to="numpy")))


@pytest.fixture(scope="module")
def screen(reference):
    return Screen(reference)


@copies
@pytest.mark.parametrize("name", OBJECTS)
def test_a_copy_gives_the_same(screen, name, duplicate):
    make, ask = OBJECTS[name]
    value = make(screen)
    assert ask(duplicate(value)) == ask(value)


@copies
@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_a_copied_loader_continues_from_the_same_position(reference, duplicate, layout):
    loader = loader_of(reference.source, layout=layout, obs=("batch",), extras=("pert_emb",), host=1, n_hosts=2)
    loader.arguments = {"split": "train"}
    assert len(list(loader)) > 2
    batches = iter(loader)
    next(batches)
    copied = duplicate(loader)
    assert (copied.host, copied.n_hosts, copied.epoch, copied.arguments) == (1, 2, 2, {"split": "train"})
    state = copied.state_dict()
    assert state == loader.state_dict()
    rest = list(batches)
    assert copied.state_dict() == state  # it does not move along
    assert all(same_batch(a, b) for a, b in zip(copied, loader, strict=True))
    copied.load_state_dict(state)
    assert all(same_batch(a, b) for a, b in zip(copied, rest, strict=True))


@copies
def test_a_copied_iterator_continues_on_its_own(reference, duplicate):
    batches = iter(loader_of(reference.source))
    next(batches)
    copied = duplicate(batches)
    expected = list(batches)
    assert all(same_batch(a, b) for a, b in zip(copied, expected, strict=True))


def test_a_loader_and_its_iterator_stay_together(reference):
    loader = loader_of(reference.source)
    batches = iter(loader)
    next(batches)
    other, other_batches = COPIES["pickle"]((loader, batches))
    next(other_batches)
    assert other.state_dict()["step"] == 2
    assert loader.state_dict()["step"] == 1


def test_pickles_hold_neither_threads_nor_cached_controls(reference):
    loader = loader_of(reference.source)
    size = len(pickle.dumps(loader))
    batches = iter(loader)
    next(batches)
    assert loader_threads()
    assert len(pickle.dumps((loader, batches))) < size + 10_000
    batches.close()


SPAWNED = """
import json, pickle, sys
import numpy as np
values = pickle.load(open(sys.argv[1], "rb"))
first = next(iter(values["loader"]))
print(json.dumps([
    np.asarray(first.counts).sum(axis=1).tolist(), values["source"].batch(np.arange(3))["counts"].sum(axis=1).tolist(),
    float(values["dataset"].X[:50].sum().compute()), values["result"].splits.digest,
]))
"""


@pytest.mark.slow
def test_a_new_process_gives_the_same(screen, tmp_path):
    loader = screen.result.loader("train", sentence_size=4, to="numpy")
    values = {"loader": loader, "source": screen.source, "dataset": screen.dataset, "result": screen.result}
    (tmp_path / "values.pickle").write_bytes(pickle.dumps(values))
    command = [sys.executable, "-c", SPAWNED, str(tmp_path / "values.pickle")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        next(iter(loader)).counts.sum(axis=1).tolist(),
        screen.source.batch(np.arange(3))["counts"].sum(axis=1).tolist(),
        float(screen.dataset.X[:50].sum().compute()),
        screen.result.splits.digest,
    ]
