"""The guide of the auditor, executed, with a key that is made on the way; a run is made again in tests/flows/test_reproduce.py."""

import subprocess
from pathlib import Path

from tests.guides.guide import Reader
from tests.processes import ROOT

ELSEWHERE = ["flows.lineage reproduce"]


def test_what_the_guide_says_is_what_happens(project: Path) -> None:
    Reader(project, elsewhere=ELSEWHERE).follow("auditor.md")


def test_it_is_true_in_the_repository_itself_beside_the_lock_of_other_runs(tmp_path: Path, prefect_server: str) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    assert (clone / "dvc.lock").is_file()
    Reader(clone, elsewhere=ELSEWHERE).follow("auditor.md")
