"""The guide of the researcher, executed, up to a factorizer of his own."""

from pathlib import Path

import pytest

from tests.support.guide import Reader

pytestmark = pytest.mark.nightly


def test_what_the_guide_says_is_what_happens(project: Path) -> None:
    Reader(project).follow("researcher.md")
