"""The guide of the auditor, executed, with a key that is made on the way; a run is made again in tests/flows/test_reproduce.py."""

from pathlib import Path

from tests.guides.guide import Reader


def test_what_the_guide_says_is_what_happens(project: Path) -> None:
    Reader(project, elsewhere=["flows.lineage reproduce"]).follow("auditor.md")
