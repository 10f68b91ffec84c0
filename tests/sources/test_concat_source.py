"""Several screens are what AnnData's concatenation shows, whatever their genes and dtypes."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from lazypert import PerturbationAnnDataSource, PerturbationConcatSource, PerturbationSourceConfig
from lazypert.errors import ConfigError, SourceFormatError
from lazypert.screen.roles import AXES
from lazypert.sparse.columns import ColumnSelection
from tests.support.native import hide_native_functions
from tests.support.screens import CONTROL, holey_screen, in_store_order, make_screen, source_of

GENES = (["g0", "g1", "g2", "g3"], ["g3", "new", "g1", "g0"])
LABELS = {"perturbation": "pert", "cell_type": "cell_type", "batch": "batch"}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Make a source of the two screens, converted once; returns the screens and the parts too."""
    folder = tmp_path_factory.mktemp("concat")
    screens = [holey_screen(30, seed, genes=genes) for seed, genes in enumerate(GENES)]
    stores = [source_of(s, folder, name=f"s{i}", order="grouped").store.path for i, s in enumerate(screens)]

    def make(*, join="inner", names=None, **options):
        parts = [PerturbationAnnDataSource(PerturbationSourceConfig(file_path=s, **options)) for s in stores]
        return PerturbationConcatSource(parts, join=join, names=names), screens, parts

    make.files = [folder / "s0.h5ad", folder / "s1.h5ad"]
    return make


def by_hand(screens, parts, genes):
    """Dense values in the order of rows, zero where a screen lacks the gene; and obs."""
    ordered = [in_store_order(part, s) for part, s in zip(parts, screens, strict=True)]
    dense = [a.to_df().reindex(columns=genes, fill_value=0).to_numpy() for a in ordered]
    return np.concatenate(dense), pd.concat([a.obs for a in ordered])


@pytest.mark.parametrize(("join", "genes"), [("inner", {"g0", "g1", "g3"}), ("outer", {"g0", "g1", "g2", "g3", "new"})])
def test_genes_are_aligned_by_name(make, join, genes):
    source, screens, parts = make(join=join, include_barcodes=True, hvg_col="hvg")
    assert set(source.get_gene_names()) == genes
    dense, obs = by_hand(screens, parts, source.get_gene_names())
    assert (source.read_features(np.arange(60)) == dense).all()
    rows = np.array([59, 0, 31, 31, 5])
    batch = source.batch(rows)
    assert (batch["counts"] == dense[rows]).all()
    assert batch["barcode"].tolist() == obs.index[rows].tolist()
    assert source.n_rows == len(source) == 60


def test_one_vocabulary(make):
    source, screens, parts = make()
    _, obs = by_hand(screens, parts, [])
    for column, name in LABELS.items():
        codes, categories = getattr(source, f"get_{name}_codes")(), getattr(source, f"get_{name}_categories")()
        labels = obs[column].astype(object)
        assert [None if c < 0 else categories[c] for c in codes] == labels.where(labels.notna(), None).tolist()
        assert len(set(categories)) == len(categories)


def test_labels_of_one_screen_only_do_not_collide(tmp_path):
    parts = []
    for name, perts in (("one", ["A", CONTROL, "C"]), ("two", [CONTROL, "B", "D"])):
        adata = make_screen({"perturbation": perts, "cell_type": ["T"] * 3, "batch": [name] * 3})
        parts.append(source_of(adata, tmp_path, name=name))
    source = PerturbationConcatSource(parts)
    assert source.get_pert_categories().tolist() == ["A", "B", "C", "D", CONTROL]
    assert sorted(source[i]["pert_name"] for i in range(6)) == sorted(["A", CONTROL, "C", CONTROL, "B", "D"])


def test_controls_come_from_the_own_holey_screen(make):
    source, _, _ = make()
    mapping = lp.RandomControlMapping(lp.ControlMappingConfig(on_empty="mask", n_basal_samples=2))
    rows, controls = mapping.mapped_rows(source), mapping.build_mapping(source)
    assert (np.broadcast_to((rows < 30)[:, None], controls.shape) == (controls < 30))[~controls.mask].all()
    assert not controls.mask.all()


def test_dataset_names(make):
    assert make()[0].groups.labels["dataset"].tolist() == ["s0", "s1"]
    source, *_ = make(names=["z", "a"])
    codes = source.groups.expand(source.groups.codes["dataset"])
    assert source.groups.labels["dataset"].tolist() == ["a", "z"]
    assert codes.tolist() == [1] * 30 + [0] * 30


def test_screens_of_one_file_name_are_told_apart(tmp_path):
    parts = [source_of(holey_screen(10, seed), tmp_path / folder) for seed, folder in enumerate("ab")]
    assert PerturbationConcatSource(parts).groups.labels["dataset"].tolist() == ["screen", "screen_2"]


def test_embeddings_and_columns(make):
    source, screens, parts = make(output_space="embedding", embedding_key="X_pca", additional_obs=("depth",))
    ordered = [in_store_order(part, s) for part, s in zip(parts, screens, strict=True)]
    pca = np.concatenate([a.obsm["X_pca"] for a in ordered])
    depth = np.concatenate([a.obs["depth"] for a in ordered])
    rows = np.array([45, 2, 59, 2])
    batch = source.batch(rows)
    assert (batch["counts"] == pca[rows]).all()
    assert batch["depth"].tolist() == depth[rows].tolist()


def test_several_files_converted_into_one_store_are_the_same(make, tmp_path):
    source, *_ = make(include_barcodes=True)
    columns = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch"}
    store = lp.convert(make.files, tmp_path / "both.zarr", control_pert=CONTROL, **columns)
    both = PerturbationAnnDataSource(PerturbationSourceConfig(file_path=store, include_barcodes=True))
    assert both.get_gene_names() == source.get_gene_names()
    for axis in AXES:
        assert both.groups.labels[axis].tolist() == source.groups.labels[axis].tolist()
    cells = [
        sorted((tuple(s[i]["counts"]), s[i]["pert_name"], s[i]["batch_name"]) for i in range(60))
        for s in (source, both)
    ]
    assert cells[0] == cells[1]


@pytest.mark.parametrize("row", [-1, 60])
def test_rows_that_do_not_exist(make, row):
    source, *_ = make()
    with pytest.raises(IndexError):
        source.matrix.read_rows(np.array([row, 0]))
    with pytest.raises(IndexError):
        source.element(row)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"join": "left"}, "join: got 'left'"),
        ({"names": ["a"]}, "expected 2 different names"),
        ({"names": ["a", "a"]}, "expected 2 different names"),
    ],
    ids=str,
)
def test_options_are_checked_when_made(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_needs_a_source_and_one_control_label(tmp_path):
    with pytest.raises(ConfigError, match="empty list"):
        PerturbationConcatSource([])
    one = source_of(holey_screen(), tmp_path, name="one")
    other = source_of(holey_screen(), tmp_path, name="other", control_pert="A")
    with pytest.raises(ConfigError, match="differ in control_pert"):
        PerturbationConcatSource([one, other])


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_genes_that_cannot_be_aligned(tmp_path):
    pairs = {"ab": ["a", "b"], "cd": ["c", "d"], "bb": ["b", "b"]}
    parts = {name: source_of(holey_screen(5, genes=genes), tmp_path, name=name) for name, genes in pairs.items()}
    with pytest.raises(SourceFormatError, match="share no gene names"):
        PerturbationConcatSource([parts["ab"], parts["cd"]])
    with pytest.raises(SourceFormatError, match="'b' more than once"):
        PerturbationConcatSource([parts["ab"], parts["bb"]])
    # Nothing has to be aligned when the genes are the same, names repeated or not.
    same = PerturbationConcatSource([parts["bb"], parts["bb"]])
    assert same.get_gene_names() == ["b", "b"]


DTYPES = {"equal": ("u2", "u2"), "unsigned": ("u2", "u4"), "signed": ("u2", "i4"), "fractions": ("u2", "f4")}


@pytest.fixture(scope="module", params=DTYPES)
def mixed(request, tmp_path_factory):
    """Make sources of two screens whose values need these dtypes; and what AnnData shows of them."""
    folder, rng = tmp_path_factory.mktemp(request.param), np.random.default_rng(3)
    screens, stores = [], []
    for i, dtype in enumerate(DTYPES[request.param]):
        adata = holey_screen(50, i, genes=[f"g{j}" for j in range(12)])
        values = adata.X.toarray().astype("f8")
        values[::7] = 0
        values[1] = {"u2": 60_000, "u4": 2**22, "i4": -70_000, "f4": 0.25}[dtype]
        adata.X = sparse.csr_matrix(values.astype("f4"))
        other = adata[:, [f"g{j}" for j in rng.permutation(12)]].copy()
        other.var_names = [f"g{int(name[1:]) + 3}" for name in other.var_names]
        for name, made in (("same", adata), ("other", other)):
            source = source_of(made, folder / name, name=f"s{i}", order="grouped")
            assert source.matrix.dtype == dtype
            screens.append(in_store_order(source, made))
            stores.append(source)

    def make(genes, join):
        which = {"same": (0, 2), "other": (0, 3)}[genes]
        parts = [stores[i] for i in which]
        source = PerturbationConcatSource(parts, join=join)
        return source, by_hand([screens[i] for i in which], parts, list(source.var.index))[0]

    return make


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize(("genes", "join"), [("same", "inner"), ("other", "inner"), ("other", "outer")])
def test_rows_are_read_in_every_way(mixed, genes, join, compiled, monkeypatch):
    if not compiled:
        hide_native_functions(monkeypatch)
    source, expected = mixed(genes, join)
    n = expected.shape[1]
    wanted = np.array([7, 0, 5])
    table = ColumnSelection.from_indices(wanted, n)
    for rows in ([3, 99, 3, 50, 0, 49], list(range(100)), [99], [10, 11], [], [60, 60]):
        at, dense = np.array(rows, int), expected[np.array(rows, int)]
        block = source.matrix.read_rows(at)
        assert block.data.dtype == source.matrix.dtype
        np.testing.assert_array_equal(block.to_dense(np.float64), dense)
        assert all(
            (np.diff(block.indices[a:b]) > 0).all() for a, b in zip(block.indptr, block.indptr[1:], strict=False)
        )

        placed = source.matrix.read_view(at, layout=backwards)
        assert placed.data.dtype == source.matrix.dtype
        np.testing.assert_array_equal(shown(placed), dense)
        assert placed.offsets.tolist() == backwards(placed.lengths)[0].tolist()

        for totals in (False, True):
            chosen = source.matrix.read_columns(at, table, totals=totals)
            np.testing.assert_array_equal(shown(chosen), dense[:, wanted])
            if totals:
                np.testing.assert_allclose(chosen.totals, dense.sum(axis=1))
        np.testing.assert_array_equal(source.matrix.read_dense(at, table), dense[:, wanted])
        total = dense.sum(axis=1, keepdims=True)
        scaled = np.where(total > 0, dense * 100 / np.where(total > 0, total, 1), 0)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(
                source.matrix.read_dense(at, table, target_sum=100.0), np.log1p(scaled[:, wanted]), rtol=3e-6, atol=1e-7
            )


def backwards(lengths):
    """Places from the last row to the first, with a gap between them."""
    ends = np.cumsum(lengths[::-1] + 1)
    return (ends - lengths[::-1] - 1)[::-1], int(lengths.sum()) + len(lengths)


def shown(placed):
    """Rows, densely."""
    out = np.zeros((len(placed.offsets), placed.n_cols))
    for line, start, length in zip(out, placed.offsets, placed.lengths, strict=True):
        line[placed.indices[start : start + length]] = placed.data[start : start + length]
    return out
