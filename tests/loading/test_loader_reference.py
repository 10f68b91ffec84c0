"""The loader against naive NumPy: the file in memory, and one loop over its cells."""

from collections import Counter

import anndata
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lazypert as lp
from lazypert.design.control_pools import control_pools
from lazypert.design.sampler_config import PerturbationSamplerConfig
from lazypert.design.sentence_plan import SentencePlan
from lazypert.loading.config import LoaderConfig
from lazypert.loading.loader import Loader
from tests.support.screens import make_screen, write_screen

CONTROL = "non-targeting"
GENES = 23


SEVERAL = [pytest.param(name, marks=pytest.mark.slow) for name in ("two files", "inner join", "outer join")]


@pytest.fixture(scope="module", params=["one file", *SEVERAL])
def screen(request, tmp_path_factory):
    """Groups of one to hundreds of cells, in random order, and a few cells without labels."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("screens")
    screens = []
    for number in range(1 if request.param == "one file" else 2):
        sizes = {("T", CONTROL): 150, ("U", CONTROL): 3, ("T", "A"): 1, ("T", "B"): 300, ("U", "A"): 2, ("U", "C"): 65}
        labels = [pair for pair, n in sizes.items() for _ in range(n)] + [(None, "A"), ("U", None)]
        labels = [labels[i] for i in rng.permutation(len(labels))]
        obs = {
            "cell_type": [a for a, _ in labels],
            "perturbation": [b for _, b in labels],
            "batch": rng.choice(["b1", "b2"], len(labels)).tolist(),
        }
        counts = rng.poisson(rng.gamma(1, 1, GENES), (len(labels), GENES)) * (rng.random((len(labels), 1)) < 0.95)
        genes = [f"g{i}" for i in range(GENES)]
        if number and request.param != "two files":  # four other genes, in another order
            genes = [f"g{i}" for i in rng.permutation(GENES) + 4]
        made = make_screen(obs, counts, genes=genes)
        made.obs_names = [f"{number}-{i}" for i in range(len(labels))]
        screens.append(made)
    paths = [write_screen(made, folder / f"{i}.h5ad") for i, made in enumerate(screens)]
    join = "outer" if request.param == "outer join" else "inner"
    config = lp.PerturbationPipelineConfig(train_frac=1.0, valid_frac=0.0, control_pert=CONTROL, join=join)
    result = lp.PerturbationPipeline(config).setup(paths)
    # All cells in one AnnData, in the order of the row numbers of the source.
    combined = anndata.concat(screens, label="file", join=join, fill_value=0)
    combined = combined[list(result.source.obs_names(np.arange(result.source.n_rows))), list(result.source.var.index)]
    assert (combined.n_vars < GENES, combined.n_vars > GENES) == (request.param == "inner join", join == "outer")
    return result.source, combined.obs, combined.X.toarray().astype(np.float32)


def naive(matrix, rows, wanted, target_sum):
    out = np.zeros((len(rows), len(wanted)))
    for line, row in zip(out, rows, strict=True):
        total = matrix[row].sum()
        for column, gene in enumerate(wanted):
            value = float(matrix[row, gene])
            line[column] = np.log1p(value * target_sum / total) if target_sum and total else value
    return out


def as_dense(features, n_rows):
    dense = features.to_scipy().toarray() if isinstance(features, lp.SparseRows) else features
    return np.asarray(dense).reshape(n_rows, -1)


gene_lists = st.none() | st.lists(st.integers(0, GENES + 3), unique=True)


@given(
    seed=st.integers(0, 100),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    sentence_size=st.integers(1, 40),
    sentences_per_batch=st.integers(1, 6),
    shuffle_size=st.sampled_from([1, 50, 4096]),
    n_basal_samples=st.integers(0, 3),
    by_batch=st.booleans(),
    shuffle=st.booleans(),
    genes=gene_lists,
    target_sum=st.sampled_from([None, 1e4]),
    layout=st.sampled_from(["dense", "csr"]),
    to=st.sampled_from(["jax", "numpy"]),
    threads=st.sampled_from([1, 2, 8]),
    memory_limit=st.sampled_from(["1MiB", "512MiB"]),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_equal_those_of_naive_numpy(
    screen, seed, share, sentence_size, sentences_per_batch, shuffle_size, n_basal_samples, by_batch, shuffle,
    genes, target_sum, layout, to, threads, memory_limit,
):  # fmt: skip
    source, obs, matrix = screen
    wanted = range(matrix.shape[1]) if genes is None else [gene for gene in genes if gene < matrix.shape[1]]
    groups = source.groups
    # QC may have dropped any cells, and any may belong to another split.
    chosen = np.random.default_rng(seed).random(len(obs)) < share
    rows = groups.rows(groups.ids >= 0).keep(chosen)
    config = PerturbationSamplerConfig(
        sentence_size=sentence_size, sentences_per_batch=sentences_per_batch, seed=seed, shuffle_size=shuffle_size
    )
    plan = SentencePlan.from_rows(config, groups, rows, by_batch=by_batch, shuffle=shuffle)
    pools = control_pools(groups, by_batch=by_batch)
    loader = Loader(
        source, rows, plan, pools,
        LoaderConfig(
            n_basal_samples=n_basal_samples, target_sum=target_sum,
            genes=None if genes is None else source.var.index[wanted],
            layout=layout, to=to, threads=threads, memory_limit=memory_limit,
        ),
    )  # fmt: skip
    axes = ["cell_type", "perturbation", "batch"][: 3 if by_batch else 2]
    group = obs.groupby(axes, observed=True, dropna=False).ngroup().to_numpy()
    seen = Counter()
    size = sentence_size * sentences_per_batch
    for batch in loader:
        row, is_padding = np.asarray(batch.row), np.asarray(batch.is_padding)
        assert row.shape == (size,)
        np.testing.assert_allclose(
            as_dense(batch.counts, size), naive(matrix, row, wanted, target_sum), rtol=2e-6, atol=1e-7
        )
        sentences = group[row].reshape(-1, sentence_size)
        assert (sentences == sentences[:, :1]).all()
        seen.update(row[~is_padding].tolist())
        assert (np.asarray(batch.is_control) == (obs["perturbation"].iloc[row] == CONTROL)).all()
        if not n_basal_samples:
            assert batch.controls is None
            assert batch.control_row is None
            continue
        control = np.asarray(batch.control_row)
        assert control.shape == (size, n_basal_samples)
        np.testing.assert_allclose(
            as_dense(batch.controls, control.size),
            naive(matrix, control.ravel(), wanted, target_sum),
            rtol=2e-6,
            atol=1e-7,
        )
        control_obs = obs.iloc[control.ravel()]
        assert (control_obs["perturbation"] == CONTROL).all()
        assert (
            control_obs["cell_type"].to_numpy() == np.repeat(obs["cell_type"].iloc[row].to_numpy(), n_basal_samples)
        ).all()
    assert seen == Counter(int(r) for r in rows)
