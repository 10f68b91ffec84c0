"""The rivals of the loading benchmark, each used as its documentation recommends, for the same endpoints."""

from __future__ import annotations

from benchmarks import summary
from benchmarks.loaders import annbatch, cell_load, diffbio, lazypert, limit
from benchmarks.loaders.base import CHUNKS, DENSE, ENDPOINTS, FORMS, WITH_CONTROLS, Rival

OWN, LIMIT, BEST, WIDE = summary.OWN, "limit", "annbatch-best", "annbatch-wide"
STORE, GROUPED, SHUFFLED = "lazypert's store", "annbatch's grouped collection", "annbatch's shuffled collection"
FILE, GROUPED_FILE, SMALL_FILE = "the file", "a file in grouped order", "a smaller file"
GZIP_FILE = "the file, compressed"

_ANNBATCH = ("annbatch", "annbatch.samplers", "anndata", "jax", "pandas", "scipy.sparse", "zarr")
_CELL_LOAD = ("cell_load.data_modules", "torch")

RIVALS = {
    OWN: Rival(
        open=lazypert.open_lazypert,
        modules=("lazypert", "lazypert.loading.loader", "lazypert.pipeline", "jax"),
        package="lazypert",
        reads=STORE,
        endpoints=ENDPOINTS,
        about="its loader: every cell once per epoch, short sentences padded from their group",
    ),
    LIMIT: Rival(
        open=limit.open_limit,
        modules=("lazypert", "lazypert.pipeline", "numcodecs.blosc", "zarr"),
        package="lazypert",
        reads=STORE,
        endpoints=(CHUNKS,),
        about="not a loader: only decodes the chunks of lazypert's sentences, from memory into one buffer",
        cold=False,
    ),
    "annbatch-class": Rival(
        open=annbatch.open_classes,
        modules=_ANNBATCH,
        package="annbatch",
        reads=GROUPED,
        endpoints=ENDPOINTS,
        about="ClassSampler, with controls from a second loader, paired by cell type",
    ),
    BEST: Rival(
        open=annbatch.open_classes,
        modules=_ANNBATCH,
        package="annbatch",
        reads=GROUPED,
        endpoints=ENDPOINTS,
        about="the same, with the fastest setting whose chunks are at most as long as a sentence",
    ),
    WIDE: Rival(
        open=annbatch.open_classes,
        modules=_ANNBATCH,
        package="annbatch",
        reads=GROUPED,
        endpoints=FORMS,
        about="the same, with the fastest setting whose chunks are longer",
    ),
    "annbatch-random": Rival(
        open=annbatch.open_random,
        modules=_ANNBATCH,
        package="annbatch",
        reads=SHUFFLED,
        endpoints=FORMS,
        about="random batches from all groups, without sentences",
        coherent=False,
    ),
    "cell-load": Rival(
        open=cell_load.open_random_order,
        modules=_CELL_LOAD,
        package="cell-load",
        reads=FILE,
        endpoints=(DENSE + WITH_CONTROLS, "hvg" + WITH_CONTROLS),
        about="its data module on the .h5ad in random order; PyTorch tensors; hvg from obsm",
        slow=True,
    ),
    "cell-load-gzip": Rival(
        open=cell_load.open_random_order,
        modules=_CELL_LOAD,
        package="cell-load",
        reads=GZIP_FILE,
        endpoints=(DENSE + WITH_CONTROLS,),
        about='the same on the .h5ad as written by write_h5ad(compression="gzip")',
        slow=True,
    ),
    "cell-load-grouped": Rival(
        open=cell_load.open_grouped_order,
        modules=_CELL_LOAD,
        package="cell-load",
        reads=GROUPED_FILE,
        endpoints=(DENSE + WITH_CONTROLS, "hvg" + WITH_CONTROLS),
        about="the same with consecutive loading on an .h5ad in grouped order",
        slow=True,
    ),
    "diffbio": Rival(
        open=diffbio.open_elements,
        modules=("diffbio.pipelines.perturbation", "jax"),
        package="diffbio",
        reads=SMALL_FILE,
        endpoints=tuple(endpoint for endpoint in ENDPOINTS if not endpoint.startswith("csr")),
        about="a loop over its pipeline's elements, on a smaller screen because it holds the matrix dense",
        coherent=False,  # its short sentences stay short
        slow=True,
        cold=False,
    ),
}
"""All rivals, by name; the modules of each are imported only in its own process."""
