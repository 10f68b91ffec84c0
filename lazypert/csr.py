"""The home of `CSRBlock` in version 0.1, deprecated in favour of `lazypert.converter`; to be removed in version 1.0."""

import warnings

from lazypert.converter import CSRBlock, first_bad_index, kernel

__all__ = ["CSRBlock", "first_bad_index", "kernel"]

warnings.warn(
    "lazypert.csr is deprecated: import CSRBlock from lazypert.converter instead.", DeprecationWarning, stacklevel=2
)
