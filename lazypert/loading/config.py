"""Options of the loader. Importing this module does not import JAX."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from lazypert._internal.config import Config
from lazypert._internal.memory import default_threads, parse_bytes
from lazypert._internal.validation import (
    require,
    require_choice,
    require_flag,
    require_integer,
    require_names,
    require_number,
)
from lazypert.downsampling.config import DownsamplingConfig
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jax.sharding import Sharding

Layout = Literal["dense", "csr"]
ArrayKind = Literal["jax", "numpy"]
Extra = Literal["pert_emb", "cell_type_onehot", "batch_onehot", "barcode"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LoaderConfig(Config):
    """Options of `Loader`.

    Parameters
    ----------
    n_basal_samples
        Controls per cell; 0 for none.
    layout
        ``"dense"`` for float32 arrays, or ``"csr"`` for padded `SparseRows`, which take a fraction of the
        bytes to transfer and become dense on the device with ``to_dense()`` under jit. Their capacity is
        that of an average batch plus 15 %; a batch that needs more gets a larger one, and jit recompiles.
    genes
        Names of the genes to return, in this order. None returns those of the source's output space.
    target_sum
        Return ``log1p(counts * target_sum / total counts of the cell)``, with the total over all genes of
        the source. The matrix must hold counts. None returns values as stored.
    downsampling
        Drop reads at random before all other steps. Mode, fraction and target depth apply. To
        differentiate through downsampling, use `ReadDownsampler` on raw counts instead.
    extras
        Optional fields to add: any of ``"pert_emb"``, ``"cell_type_onehot"``, ``"batch_onehot"`` and
        ``"barcode"``.
    obs
        obs columns to add.
    text_width
        Bytes per barcode and per string of an obs column.
    fixed_pairs
        Give each cell the same controls in every epoch. With the pipeline's `seed` and
        `n_basal_samples`, these are the controls of ``result.control_mapping``.
    to
        ``"jax"``, or ``"numpy"`` for host arrays, which PyTorch, for example, uses without a copy.
    sharding
        Spread batches over several devices: a `jax.sharding.Sharding` whose first axis is the batch.
    host, n_hosts
        Iterate over one of `n_hosts` equally long shares of each epoch. No two hosts share a sentence.
        By default ``jax.process_index()`` and ``jax.process_count()``.
    threads
        Background threads that read and decode. As many again, up to `prefetch` + 1, collate batches.
    prefetch
        Maximum number of batches that are ready before the caller asks for them.
    memory_limit
        Bytes for cached controls, blocks and prefetched batches. At least two blocks and one batch are
        held in any case.

    Raises
    ------
    ConfigError
        If an option has an invalid value, or contradicts another.

    Examples
    --------
    >>> LoaderConfig(layout="csr", target_sum=1e4)
    LoaderConfig(layout='csr', target_sum=10000.0)
    """

    n_basal_samples: int = 1
    layout: Layout = "dense"
    genes: Sequence[str] | None = None
    target_sum: float | None = None
    downsampling: DownsamplingConfig | None = None
    extras: Sequence[Extra] = ()
    obs: Sequence[str] = ()
    text_width: int = 64  # wide enough for a 10x barcode with a sample name
    fixed_pairs: bool = False  # new pairs in each epoch average out the noise of single controls
    to: ArrayKind = "jax"
    sharding: Sharding | None = None
    host: int | None = None
    n_hosts: int | None = None
    threads: int | None = None  # one per processor plus one, since one may wait for the disk; at most 8
    prefetch: int = 2  # one batch is in use, and one is ready in case a collation takes longer than usual
    memory_limit: int | str = "512MiB"  # fits beside a model on a laptop

    def __post_init__(self) -> None:
        for name, least in (("n_basal_samples", 0), ("text_width", 1), ("prefetch", 1)):
            self._set(name, require_integer(name, getattr(self, name), least))
        for name, least in (("threads", 1), ("n_hosts", 1), ("host", 0)):
            if getattr(self, name) is not None:
                self._set(name, require_integer(name, getattr(self, name), least))
        require_choice("layout", self.layout, Layout)
        require_choice("to", self.to, ArrayKind)
        self._set("fixed_pairs", require_flag("fixed_pairs", self.fixed_pairs))
        if self.genes is not None:
            self._set("genes", tuple(require_names("genes", self.genes)))
        if self.target_sum is not None:
            self._set("target_sum", require_number("target_sum", self.target_sum, above=0))
        self._set("extras", tuple(require_names("extras", self.extras)))
        for name in self.extras:
            require_choice("extras", name, Extra)
        self._set("obs", tuple(dict.fromkeys(require_names("obs", self.obs))))
        parse_bytes(self.memory_limit, "memory_limit")
        self._check_downsampling()
        self._check_sharding()
        if self.fixed_pairs and not self.n_basal_samples:
            raise ConfigError(
                "fixed_pairs: got True with n_basal_samples=0, expected at least one control per cell. "
                "Pass n_basal_samples=1 or more."
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_downsampling(self) -> None:
        config = self.downsampling
        is_config = config is None or isinstance(config, DownsamplingConfig)
        require(is_config, "downsampling", config, "a DownsamplingConfig or None")
        if config is not None and (config.is_log1p_input or config.estimator != "binomial"):
            raise ConfigError(
                f"downsampling: got {config!r}, expected is_log1p_input=False and estimator='binomial'. "
                "The loader thins stored reads; for anything else, apply a ReadDownsampler to the batch."
            )

    def _check_sharding(self) -> None:
        if self.sharding is None:
            return
        from jax.sharding import Sharding

        is_sharding = isinstance(self.sharding, Sharding)
        require(is_sharding, "sharding", self.sharding, "a jax.sharding.Sharding or None")
        if self.to == "numpy":
            raise ConfigError(
                "sharding: got a sharding with to='numpy', expected one only with to='jax'. Leave out one of them."
            )

    @property
    def n_threads(self) -> int:
        """Background threads that read: `threads`, or its default on this machine."""
        return default_threads() if self.threads is None else self.threads

    def __repr__(self) -> str:
        changed = [
            f"{field.name}={_short_repr(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"LoaderConfig({', '.join(changed)})"


class LoaderOptions(TypedDict, total=False):
    """The fields of `LoaderConfig` as keyword arguments."""

    n_basal_samples: int
    layout: Layout
    genes: Sequence[str] | None
    target_sum: float | None
    downsampling: DownsamplingConfig | None
    extras: Sequence[Extra]
    obs: Sequence[str]
    text_width: int
    fixed_pairs: bool
    to: ArrayKind
    sharding: Sharding | None
    host: int | None
    n_hosts: int | None
    threads: int | None
    prefetch: int
    memory_limit: int | str


def _short_repr(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 5:
        return f"({', '.join(map(repr, value[:3]))}, ... {len(value):,} in all)"
    return repr(value)
