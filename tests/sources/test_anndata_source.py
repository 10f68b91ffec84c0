"""A source of one screen names what it does not find, and shows itself in one line."""

import pytest

import lazypert as lp
from lazypert import PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert.errors import ColumnNotFoundError, LabelNotFoundError
from tests.support.screens import CONTROL, holey_screen, write_screen


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A file, and the store made from it."""
    path = write_screen(holey_screen(), tmp_path_factory.mktemp("errors") / "s.h5ad")
    return {"file": path, "store": lp.convert(path, path.with_name("s.zarr"))}


@pytest.mark.parametrize("kind", ["file", "store"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pert_col": "pertubation"}, ColumnNotFoundError, "Did you mean 'perturbation'"),
        ({"cell_type_col": "celltype"}, ColumnNotFoundError, "'cell_type'.*cell_type_col=None"),
        ({"batch_col": "gem"}, ColumnNotFoundError, "batch_col=None"),
        ({"control_pert": "non_targeting"}, LabelNotFoundError, f"Did you mean '{CONTROL}'"),
        ({"additional_obs": ("dept",)}, ColumnNotFoundError, "Did you mean 'depth'"),
        ({"output_space": "gene", "hvg_col": "hvgs"}, ColumnNotFoundError, "Did you mean 'hvg'"),
        (
            {"output_space": "embedding", "embedding_key": "X_umap"},
            ColumnNotFoundError,
            "embedding_key: got 'X_umap'",
        ),
        ({"layer": "thrice"}, ColumnNotFoundError, "layer: got 'thrice'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unknown_name_raises_with_near_matches(paths, tmp_path, kind, options, error, message):
    config = PerturbationSourceConfig(file_path=paths[kind], cache_dir=tmp_path, **options)
    with pytest.raises(error, match=message):
        PerturbationAnnDataSource(config)


def test_the_repr_is_one_line(open_store):
    source = open_store()
    assert repr(source) == f"PerturbationAnnDataSource({source.store.path!r}: 40 cells x 6 genes)"


def test_one_screen_is_one_segment(open_store):
    source = open_store()
    (segment,) = source.segments("twice")
    assert segment.first_row == 0
    assert segment.matrix.name == "layers/twice"
    assert source.stores == (source.store,)
    assert source.matrices == (source.matrix,)
