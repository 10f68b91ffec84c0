"""Labels that may be mistakes are described; nothing is changed."""

import pytest

from lazypert.screen.label_checks import suspicious_labels


def notes(*labels):
    return list(suspicious_labels("gene", labels, [3] * len(labels)))


def test_plain_labels_raise_no_suspicion():
    assert notes("A", "B", "non-targeting", "drug A 10 uM", "nano", "A+B") == []


@pytest.mark.parametrize("label", ["nan", "NaN", "NA", "n/a", "None", "null", "", " ", "<NA>"])
def test_missing_values_written_as_text_are_counted(label):
    (note, *_) = notes("A", label)
    assert note.startswith(f"obs/gene: 3 cells are labelled {label!r}, which is a label like any other")


def test_spellings_of_one_label_are_listed():
    found = notes("TP53", "tp53", "Tp53 ", "MYC")
    assert found[0] == (
        "obs/gene: 1 label is spelt in several ways ('TP53', 'tp53', 'Tp53 '), which stay different labels"
    )
    assert found[1] == "obs/gene: 1 label begins or ends with blanks ('Tp53 '), which are part of the label"


def test_only_a_few_examples_are_shown():
    found = notes(*(f"{name}{end}" for name in "ABCDEFGH" for end in ("", " ")))
    assert [note.count("'") for note in found] == [20, 10]
    assert all("..." in note for note in found)
