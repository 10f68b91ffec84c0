"""Value statistics: what the values of a matrix require of its dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def value_stats(data: NDArray[Any]) -> ValueStats:
    """Collect the statistics of an array of values."""
    if data.size == 0:
        return ValueStats()
    if data.dtype.kind in "bui":
        minimum, maximum = min(0, int(data.min())), max(0, int(data.max()))
        largest = max(-minimum, maximum)
        return ValueStats(
            float32_exact=largest <= 2**24, float64_exact=largest <= 2**53, minimum=minimum, maximum=maximum
        )
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
        # Beyond 2^53 floats are further apart than integers, so such values stay floats.
        if np.floor(value) != value or abs(value) > 9007199254740992.0:
            integral = False
        if np.float64(np.float32(value)) != value:
            float32_exact = False
    return integral, float32_exact, low, high, n_nonfinite


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueStats:
    """What the values of a matrix require of its dtype; the defaults are those of an empty matrix.

    Attributes
    ----------
    integral
        Whether all values are integers.
    float32_exact, float64_exact
        Whether the dtype represents all values exactly.
    minimum, maximum
        Extremes of the finite values and 0, as every sparse matrix holds zeros.
    n_nonfinite
        Number of NaN and infinite values.
    """

    integral: bool = True
    float32_exact: bool = True
    float64_exact: bool = True
    minimum: float = 0.0
    maximum: float = 0.0
    n_nonfinite: int = 0

    def merge(self, other: ValueStats) -> ValueStats:
        """Combine the statistics of two blocks."""
        return ValueStats(
            integral=self.integral and other.integral,
            float32_exact=self.float32_exact and other.float32_exact,
            float64_exact=self.float64_exact and other.float64_exact,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            n_nonfinite=self.n_nonfinite + other.n_nonfinite,
        )

    def dtype(self) -> np.dtype[Any]:
        """Smallest dtype of the store format that represents every value exactly.

        One-byte integers and half floats are never used: SciPy and AnnData read them, but much of scanpy fails on them.

        Raises
        ------
        SourceFormatError
            When no dtype of the format does.
        """
        if self.integral:
            for name in ("u2", "u4") if self.minimum >= 0 else ("i4",):
                if np.iinfo(name).min <= self.minimum and self.maximum <= np.iinfo(name).max:
                    return np.dtype(name)
            if self.minimum >= -(2**63) and self.maximum < 2**63:
                return np.dtype("i8")
            raise SourceFormatError(
                f"values: got integers from {self.minimum:.0f} to {self.maximum:.0f}, expected them to fit into 64-bit "
                "signed integers (at most 9223372036854775807). Check the file: counts are never that large."
            )
        if not self.float64_exact:
            raise SourceFormatError(
                "values: got both fractions and integers beyond 2^53 (9007199254740992), expected values that one "
                "dtype represents exactly. Check the files: counts are never that large. Files that are converted "
                "together need values of the same kind."
            )
        return np.dtype("f4") if self.float32_exact else np.dtype("f8")
