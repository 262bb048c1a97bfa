"""The rule that finds documents is the first whose sign occurs, and it is reported."""

import pytest

from mgaa.errors import InputError
from tasks.data.boundaries import cut, cut_rows

WIKITEXT = (
    " \n = Lobster = \n \n A lobster . \n \n = = Life = = \n \n It lives . \n \n = Crab = \n \n A crab . \n = x = \n \n"
)


@pytest.mark.parametrize(
    ("text", "documents", "rule"),
    [
        ("one\n\ntwo\n<|endoftext|>\nthree\n", ["one\n\ntwo", "three"], "lines holding only <|endoftext|>"),
        (" <|endoftext|> \r\none\r\n<|endoftext|>\r\n", ["one"], "lines holding only <|endoftext|>"),
        ("one\n \ntwo\nlines\n\n\nthree", ["one", "two\nlines", "three"], "blank lines"),
        ("one\r\n\r\ntwo", ["one", "two"], "blank lines"),
        ("\n\none\ntwo \n\n", ["one", "two"], "every line"),
        ("one <|endoftext|> inline\ntwo", ["one <|endoftext|> inline", "two"], "every line"),
        ("one", ["one"], "every line"),
        (" \n\n", [], "every line"),
    ],
)
def test_the_first_rule_whose_sign_occurs_cuts(text, documents, rule):
    assert cut(text) == (documents, rule)


def test_wikitext_is_cut_at_headings_of_articles_and_not_of_sections():
    documents, rule = cut(WIKITEXT)
    assert rule == "WikiText article headings"
    assert [each.split(" = ")[1] for each in documents] == ["Lobster", "Crab"]
    assert documents[0].startswith(" = Lobster = \n")
    assert documents[0].endswith("It lives .")


def test_a_heading_on_the_first_line_is_found():
    assert len(cut(WIKITEXT.removeprefix(" \n"))[0]) == 2


def test_a_rule_can_be_forced_by_name():
    assert cut("one\n\ntwo\nlines", "lines") == (["one", "two", "lines"], "every line")


def test_none_keeps_the_file_whole():
    assert cut("one\n\ntwo", "none") == (["one\n\ntwo"], "none: each file is one document")


def test_any_other_separator_is_literal():
    assert cut("one<eos>two", "<eos>") == (["one", "two"], "separator '<eos>'")


def test_a_literal_separator_that_does_not_occur_is_refused():
    with pytest.raises(
        InputError, match=r"'<eos>' does not occur .* use auto, none, markers, headings, paragraphs, lines"
    ):
        cut("one\ntwo", "<eos>")


def test_rows_are_documents():
    assert cut_rows(["one\n\ntwo", "", "three"]) == (["one\n\ntwo", "three"], "every row")


def test_rows_of_wikitext_are_cut_like_the_file_they_were_made_from():
    rows = ["" if not line.strip() else line for line in WIKITEXT.splitlines(keepends=True)]
    assert cut_rows(rows) == cut(WIKITEXT)


def test_none_joins_rows_by_blank_lines():
    assert cut_rows(["one", "two"], "none")[0] == ["one\n\ntwo"]
