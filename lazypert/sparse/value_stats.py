"""Value statistics: what the values of a matrix say about the dtype they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def value_stats(data: NDArray[Any]) -> ValueStats:
    """Look at every value and say which dtype holds them all exactly."""
    if data.size == 0:
        return ValueStats()
    if data.dtype.kind in "bui":
        least, most = min(0, int(data.min())), max(0, int(data.max()))
        largest = max(-least, most)
        return ValueStats(float32_exact=largest <= 2**24, float64_exact=largest <= 2**53, minimum=least, maximum=most)
    integral, float32_exact, low, high, n_nonfinite = _float_stats(data)
    return ValueStats(
        integral=bool(integral),
        float32_exact=bool(float32_exact),
        minimum=float(low),
        maximum=float(high),
        n_nonfinite=int(n_nonfinite),
    )


@kernel
def _float_stats(data: Any) -> tuple[bool, bool, float, float, int]:
    integral, float32_exact = True, True
    low, high = 0.0, 0.0
    n_nonfinite = 0
    for k in range(len(data)):
        value = np.float64(data[k])
        if not np.isfinite(value):
            n_nonfinite += 1
            integral = False
            continue
        low, high = min(low, value), max(high, value)
        # Beyond 2^53 neighbouring floats are further apart than integers: such values stay floats.
        if np.floor(value) != value or abs(value) > 9007199254740992.0:
            integral = False
        if np.float64(np.float32(value)) != value:
            float32_exact = False
    return integral, float32_exact, low, high, n_nonfinite


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueStats:
    """What every value of a matrix says about the dtype it needs."""

    integral: bool = True
    float32_exact: bool = True
    float64_exact: bool = True
    minimum: float = 0.0
    maximum: float = 0.0
    n_nonfinite: int = 0

    def merge(self, other: ValueStats) -> ValueStats:
        """Facts of two blocks together."""
        return ValueStats(
            integral=self.integral and other.integral,
            float32_exact=self.float32_exact and other.float32_exact,
            float64_exact=self.float64_exact and other.float64_exact,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            n_nonfinite=self.n_nonfinite + other.n_nonfinite,
        )

    def dtype(self) -> np.dtype[Any]:
        """Smallest dtype of the format that holds every value exactly.

        Never one byte or half floats: SciPy and AnnData read them, and then much of scanpy fails.
        """
        if self.integral:
            for name in ("u2", "u4") if self.minimum >= 0 else ("i4",):
                if np.iinfo(name).min <= self.minimum and self.maximum <= np.iinfo(name).max:
                    return np.dtype(name)
            if self.minimum >= -(2**63) and self.maximum < 2**63:
                return np.dtype("i8")
            raise SourceFormatError(
                f"The matrix holds integers up to {self.maximum:.0f}, beyond 64-bit signed integers "
                "(at most 9223372036854775807). No dtype of the store holds them exactly; "
                "check the file, as no count is that large."
            )
        if not self.float64_exact:
            raise SourceFormatError(
                "The matrix holds fractions and integers beyond 2^53 (9007199254740992), and no dtype holds both "
                "exactly. Check the files, as no count is that large; several files may need the same kind of values."
            )
        return np.dtype("f4") if self.float32_exact else np.dtype("f8")
