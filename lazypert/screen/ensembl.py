"""Ensembl gene ids: the part after the dot is a version, which other tables may lack."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lazypert.screen.labels import label_array

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

_ID = re.compile(r"(ENS[A-Z]*G\d{11})\.\d+")


def without_versions(names: Iterable[str]) -> NDArray[np.str_]:
    """(n,) names, in which Ensembl gene ids have lost their version.

    Examples
    --------
    >>> without_versions(["ENSG00000141510.18", "TP53", "RP11-206L10.9"]).tolist()
    ['ENSG00000141510', 'TP53', 'RP11-206L10.9']
    """
    return label_array([_ID.sub(r"\1", name) if _ID.fullmatch(name) else name for name in map(str, names)])
