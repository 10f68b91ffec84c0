"""Findings are ordered by how severe they are."""

from itertools import product

from lazypert.splits.findings import KINDS, LEVELS, Finding
from lazypert.splits.leaks import _SHARED
from lazypert.splits.same_cells import _EXPLANATIONS


def test_errors_come_before_warnings_and_notes():
    made = [Finding(level, kind, ("train",), 1, 1, (), "") for kind, level in product(KINDS, LEVELS)]
    ordered = sorted(made, key=lambda finding: finding.rank)
    assert [finding.level for finding in ordered] == [level for level in LEVELS for _ in KINDS]
    assert [finding.kind for finding in ordered] == [*KINDS] * len(LEVELS)


def test_every_explanation_is_one_sentence():
    for text in [*_EXPLANATIONS.values(), *(explanation for _, explanation in _SHARED.values())]:
        assert text[0].isupper()
        assert text.endswith(".")
        assert ". " not in text.replace("adata.obs", "")
        assert ";" in text or "," in text
