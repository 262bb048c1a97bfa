"""Two portions of one text are found whatever separator cut them; common language is counted and let through."""

import pytest

from mgaa.errors import InputError, UsageError
from tasks.data.boundaries import cut
from tasks.data.overlap import overlap, require_disjoint, require_ranges_apart

WORDS = [f"word{i}" for i in range(4000)]


def story(start: int, length: int = 60) -> str:
    """A document of its own words."""
    return " ".join(WORDS[start : start + length])


def test_unrelated_texts_share_nothing():
    found = overlap([story(0)], [story(100)])
    assert (found.documents, found.long, found.sequences, found.refused) == (0, 0, 0.0, False)


def test_one_long_document_in_both_refuses_the_run():
    first = [story(60 * i) for i in range(30)]
    second = [story(60 * i) for i in range(30, 60)] + [f" {first[7]}\n"]
    with pytest.raises(
        InputError, match="calibration and evaluation texts overlap: 1 documents of at least 200 characters"
    ) as error:
        require_disjoint({"calibration": first, "evaluation": second})
    assert first[7][:60] in str(error.value)
    assert "give data.calibration and data.evaluation different sources, splits, or ranges" in str(error.value)


def test_short_documents_in_both_are_counted_and_let_through():
    first = [story(60 * i) for i in range(30)] + ["History", "Terms were not disclosed ."]
    second = [story(60 * i) for i in range(30, 60)] + ["History", "Terms were not disclosed ."]
    shared = require_disjoint({"calibration": first, "evaluation": second})
    assert shared["calibration-evaluation"]["documents"] == 2
    assert 0 < shared["calibration-evaluation"]["sequences"] < 0.01


def test_texts_of_short_documents_only_are_refused_when_they_share_many():
    with pytest.raises(InputError, match="overlap"):
        require_disjoint({"calibration": ["one two", "three"], "evaluation": ["three", "four", "five six"]})


def test_the_same_text_cut_in_another_way_is_found():
    text = "\n\n".join(f"{story(40 * i, 20)}\n{story(40 * i + 20, 20)}" for i in range(50))
    paragraphs, lines = cut(text)[0], cut(text, "lines")[0]
    assert not {*paragraphs} & {*lines}
    assert overlap(paragraphs, lines).sequences == 1.0


def test_case_and_punctuation_do_not_hide_an_overlap():
    assert overlap([story(0)], [story(0).upper().replace(" ", ", ")]).sequences == 1.0


def test_a_small_part_of_a_large_text_is_found():
    large = [story(60 * i) for i in range(60)]
    assert overlap(large, [large[3][:-1]]).sequences > 0.9
    assert overlap([large[3][:-1]], large).sequences > 0.9


def test_all_pairs_are_compared():
    portions = {"calibration": [story(0)], "validation": [story(60)], "evaluation": [story(120)]}
    assert set(require_disjoint(portions)) == {
        "calibration-validation",
        "calibration-evaluation",
        "validation-evaluation",
    }
    with pytest.raises(InputError, match="validation and evaluation"):
        require_disjoint(portions | {"validation": [story(120)]})


def test_ranges_of_one_source_that_meet_are_refused():
    with pytest.raises(
        UsageError, match=r"data.calibration reads a.txt from 0.0 to 0.5 and data.evaluation from 0.4 to 1.0"
    ):
        require_ranges_apart({"calibration": ("a.txt", 0.0, 0.5), "evaluation": ("a.txt", 0.4, 1.0)})


def test_ranges_that_touch_and_ranges_of_different_sources_are_apart():
    require_ranges_apart(
        {"calibration": ("a.txt", 0.0, 0.4), "evaluation": ("a.txt", 0.4, 1.0), "validation": ("b.txt", 0.0, 1.0)}
    )
