"""A source of several screens equals their concatenation in AnnData, with labels united and genes aligned."""

import numpy as np
import pytest

import lazypert as lp
from lazypert import PerturbationAnnDataSource, PerturbationConcatSource, PerturbationSourceConfig
from lazypert.errors import ConfigError, NotCopiedWarning, SourceFormatError
from lazypert.screen.roles import AXES
from tests.support.screens import CONTROL, concatenated, holey_screen, in_store_order, make_screen, source_of

GENES = (["g0", "g1", "g2", "g3"], ["g3", "new", "g1", "g0"])
LABELS = {"perturbation": "pert", "cell_type": "cell_type", "batch": "batch"}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Make a source of two screens, converted once; returns the screens and their own sources too."""
    folder = tmp_path_factory.mktemp("concat")
    screens = [holey_screen(30, seed, genes=genes) for seed, genes in enumerate(GENES)]
    stores = [source_of(s, folder, name=f"s{i}", order="grouped").store.path for i, s in enumerate(screens)]

    def make(*, join="inner", names=None, **options):
        sources = [PerturbationAnnDataSource(PerturbationSourceConfig(file_path=s, **options)) for s in stores]
        return PerturbationConcatSource(sources, join=join, names=names), screens, sources

    make.files = [folder / "s0.h5ad", folder / "s1.h5ad"]
    return make


@pytest.mark.parametrize(("join", "genes"), [("inner", {"g0", "g1", "g3"}), ("outer", {"g0", "g1", "g2", "g3", "new"})])
def test_genes_are_aligned_by_name(make, join, genes):
    source, screens, sources = make(join=join, include_barcodes=True, hvg_col="hvg")
    assert set(source.get_gene_names()) == genes
    dense, obs = concatenated(screens, sources, source.get_gene_names())
    assert (source.read_features(np.arange(60)) == dense).all()
    rows = np.array([59, 0, 31, 31, 5])
    batch = source.batch(rows)
    assert (batch["counts"] == dense[rows]).all()
    assert batch["barcode"].tolist() == obs.index[rows].tolist()
    assert source.n_rows == len(source) == 60


def test_labels_are_united(make):
    source, screens, sources = make()
    _, obs = concatenated(screens, sources, [])
    for column, name in LABELS.items():
        codes, categories = getattr(source, f"get_{name}_codes")(), getattr(source, f"get_{name}_categories")()
        labels = obs[column].astype(object)
        assert [None if c < 0 else categories[c] for c in codes] == labels.where(labels.notna(), None).tolist()
        assert len(set(categories)) == len(categories)


def test_codes_of_labels_in_only_one_screen_do_not_collide(tmp_path):
    sources = []
    for name, perts in (("one", ["A", CONTROL, "C"]), ("two", [CONTROL, "B", "D"])):
        adata = make_screen({"perturbation": perts, "cell_type": ["T"] * 3, "batch": [name] * 3})
        sources.append(source_of(adata, tmp_path, name=name))
    source = PerturbationConcatSource(sources)
    assert source.get_pert_categories().tolist() == ["A", "B", "C", "D", CONTROL]
    assert sorted(source[i]["pert_name"] for i in range(6)) == sorted(["A", CONTROL, "C", CONTROL, "B", "D"])


def test_controls_come_from_the_cells_own_screen(make):
    source, _, _ = make()
    mapping = lp.RandomControlMapping(lp.ControlMappingConfig(on_empty="mask", n_basal_samples=2))
    rows, controls = mapping.mapped_rows(source), mapping.build_mapping(source)
    assert (np.broadcast_to((rows < 30)[:, None], controls.shape) == (controls < 30))[~controls.mask].all()
    assert not controls.mask.all()


def test_dataset_names_default_to_file_stems(make):
    assert make()[0].groups.labels["dataset"].tolist() == ["s0", "s1"]
    source, *_ = make(names=["z", "a"])
    codes = source.groups.expand(source.groups.codes["dataset"])
    assert source.groups.labels["dataset"].tolist() == ["a", "z"]
    assert codes.tolist() == [1] * 30 + [0] * 30


def test_repeated_file_stems_are_numbered(tmp_path):
    sources = [source_of(holey_screen(10, seed), tmp_path / folder) for seed, folder in enumerate("ab")]
    assert PerturbationConcatSource(sources).groups.labels["dataset"].tolist() == ["screen", "screen_2"]


def test_embeddings_and_obs_columns_are_read_from_each_screen(make):
    source, screens, sources = make(output_space="embedding", embedding_key="X_pca", additional_obs=("depth",))
    ordered = [in_store_order(one, s) for one, s in zip(sources, screens, strict=True)]
    pca = np.concatenate([a.obsm["X_pca"] for a in ordered])
    depth = np.concatenate([a.obs["depth"] for a in ordered])
    rows = np.array([45, 2, 59, 2])
    batch = source.batch(rows)
    assert (batch["counts"] == pca[rows]).all()
    assert batch["depth"].tolist() == depth[rows].tolist()


def test_files_converted_into_one_store_give_the_same_cells(make, tmp_path):
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
def test_a_row_that_does_not_exist_raises(make, row):
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
def test_options_are_checked_on_construction(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_sources_must_share_their_options(tmp_path):
    with pytest.raises(ConfigError, match="empty list"):
        PerturbationConcatSource([])
    one = source_of(holey_screen(), tmp_path, name="one")
    other = source_of(holey_screen(), tmp_path, name="other", control_pert="A")
    with pytest.raises(
        ConfigError, match=r"^control_pert: got '.*' for one screen, but it is a perturbation in another"
    ):
        _ = PerturbationConcatSource([one, other]).groups
    other = source_of(holey_screen(), tmp_path, name="other", additional_obs=("batch",))
    with pytest.raises(ConfigError, match=r"^additional_obs: got \[.*\], expected the same value in all sources"):
        PerturbationConcatSource([one, other])


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_genes_that_cannot_be_aligned_raise(tmp_path):
    pairs = {"ab": ["a", "b"], "cd": ["c", "d"], "bb": ["b", "b"]}
    sources = {name: source_of(holey_screen(5, genes=genes), tmp_path, name=name) for name, genes in pairs.items()}
    with pytest.raises(SourceFormatError, match="share no gene names"):
        PerturbationConcatSource([sources["ab"], sources["cd"]])
    with pytest.raises(SourceFormatError, match="'b' more than once"):
        PerturbationConcatSource([sources["ab"], sources["bb"]])
    # Equal genes need no alignment, even if names repeat.
    same = PerturbationConcatSource([sources["bb"], sources["bb"]])
    assert same.get_gene_names() == ["b", "b"]


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_ensembl_ids_in_different_versions_are_told(tmp_path, join):
    ids = ["ENSG00000141510", "ENSG00000133703"]
    genes = ids, [f"{ids[0]}.18", ids[1]]
    files = []
    for number, names in enumerate(genes):
        files.append(tmp_path / f"s{number}.h5ad")
        holey_screen(5, genes=names).write_h5ad(files[-1])
    with pytest.warns(NotCopiedWarning, match="1 genes have different versions of their Ensembl id"):
        lp.convert(files, tmp_path / "both.zarr", join=join, progress=False)
    sources = [source_of(holey_screen(5, genes=names), tmp_path, name=f"t{i}") for i, names in enumerate(genes)]
    with pytest.warns(UserWarning, match=r"1 genes have different versions .*'ENSG00000141510\.18', and were not"):
        source = PerturbationConcatSource(sources, join=join)
    assert len(source.get_gene_names()) == (1 if join == "inner" else 3)


def test_the_repr_is_one_line(make):
    assert repr(make()[0]) == "PerturbationConcatSource(s0, s1: 60 cells x 3 genes)"
    many = PerturbationConcatSource(make()[2] * 4)
    assert repr(many) == "PerturbationConcatSource(s0, s1, s0_2, s1_2, s0_3, ... 3 more: 240 cells x 3 genes)"


def test_segments_follow_one_another(make):
    source, _, sources = make()
    first, second = source.segments("twice")
    assert (first.first_row, second.first_row) == (0, 30)
    assert [segment.matrix.name for segment in (first, second)] == ["layers/twice"] * 2
    for segment, one in zip((first, second), sources, strict=True):
        assert list(one.var.index[segment.column_of]) == source.get_gene_names()
