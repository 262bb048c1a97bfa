"""The guide of the researcher, executed, up to a factorizer of his own."""

from pathlib import Path

from tests.guides.guide import Reader


def test_what_the_guide_says_is_what_happens(project: Path) -> None:
    Reader(project).follow("researcher.md")
