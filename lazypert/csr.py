"""Where version 0.1 had `CSRBlock`. Import it from `lazypert.converter`; this module will go in version 1.0."""

import warnings

from lazypert.converter import CSRBlock, first_bad_index, kernel

__all__ = ["CSRBlock", "first_bad_index", "kernel"]

warnings.warn("lazypert.csr has moved: import CSRBlock from lazypert.converter.", DeprecationWarning, stacklevel=2)
