"""A run is made again from its record: another clone, the recorded commit and parameters, and the same digests."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prefect.settings import get_current_settings

from tests.support.laboratory import TinyProject
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow

OWN = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b"}


@pytest.fixture(scope="module")
def project(empty: TinyProject, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in a repository of its own, with a small model and its texts beside what git has, after an experiment of DVC."""
    folder = tmp_path_factory.mktemp("team") / "project"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in tracked.split("\0"):
        if name.startswith(("mgaa/", "tasks/", "flows/", "demo/", ".dvc")) or name in (".gitignore", "constraints.txt"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(empty.model, folder / "own" / "model")
    shutil.copy(empty.texts, folder / "own" / "texts.txt")
    (folder / ".gitignore").write_text((folder / ".gitignore").read_text() + "\n/own/\n")
    parameters = yaml.safe_load((empty.root / "params.yaml").read_text())
    parameters["backbone"]["source"], parameters["tracking"]["uri"] = "own/model", "sqlite:///mlflow.db"
    for section in ("calibration", "validation", "evaluation", "recovery"):
        parameters["data"][section]["source"] = "own/texts.txt"
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters))
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["compress"]
    stage |= {"cmd": "python -m flows.compress --quiet", "deps": ["flows", "mgaa", "tasks"]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"compress": stage}}))
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "one"]):
        subprocess.run(["git", *words], cwd=folder, env={**os.environ, **OWN}, check=True)
    done = run(folder, "dvc", "exp", "run", "-S", "ratios.compression=0.25", "-S", "evaluation.tasks=[]")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in the project."""
    own = {**os.environ, **OWN, "PYTHONPATH": str(folder), "PREFECT_API_URL": str(get_current_settings().api.url)}
    own |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
    }
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=own, capture_output=True, text=True, check=False
    )


@pytest.mark.nightly
def test_a_run_is_made_again_with_the_same_digests_and_verifies(project: Path) -> None:
    verified = run(project, "flows.lineage", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "git" not in verified.stdout  # every file of every step is that of the commit
    record = json.loads((project / "results" / "record.json").read_bytes())
    assert (record["parameters"]["ratios.compression"], record["git"]["dirty"]) == (0.25, False)
    made = run(project, "flows.lineage", "reproduce", "--python", sys.executable)
    assert made.returncode == 0, made.stdout + made.stderr
    stages = record["artifacts"]
    assert f"{len(stages)} of {len(stages)} stages have the same digests" in made.stdout
    assert "package" not in made.stdout


@pytest.mark.nightly
def test_what_cannot_be_made_again_is_refused(project: Path) -> None:
    texts = project / "own" / "texts.txt"
    before = texts.read_bytes()
    texts.write_bytes(before + b"more")
    refused = run(project, "flows.lineage", "reproduce", "--python", sys.executable)
    texts.write_bytes(before)
    assert refused.returncode == 3
    assert "inputs are not those of the run" in refused.stderr
