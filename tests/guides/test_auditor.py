"""The guide of the auditor, executed, with a key that is made on the way; a run is made again in tests/flows/test_reproduce.py."""

import subprocess
from contextlib import chdir
from pathlib import Path

import pytest

from tests.support.guide import Reader
from tests.support.processes import ROOT

pytestmark = pytest.mark.nightly

ELSEWHERE = ["flows.lineage reproduce"]


def test_what_the_guide_says_is_what_happens(project: Path) -> None:
    Reader(project, elsewhere=ELSEWHERE).follow("auditor.md")


def test_it_is_true_in_the_repository_itself_after_dvc_repro_and_by_hand(tmp_path: Path, prefect_server: str) -> None:
    """`dvc.lock` names the record of the repro, and then one that is not that of the runs by hand; neither is a disagreement."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    reader = Reader(clone, elsewhere=ELSEWHERE)
    with chdir(clone):
        reader.run("dvc repro --quiet compress")
        reader.run("git -c user.name=a -c user.email=a@b commit --quiet --all --message locked")
        assert ": 0 disagreements, " in reader.run("python -m flows.lineage verify")
    reader.follow("auditor.md")
