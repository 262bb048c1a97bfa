"""The guide of a team, run as it is written: two members in two clones of one repository, one remote, one tracking server."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from mgaa.checkpoints.ownership import MARK
from tests.support.laboratory import documents, write_model
from tests.support.processes import ROOT
from tests.support.servers import TrackingServer, free_port

pytestmark = pytest.mark.nightly

GUIDE = (ROOT / "docs" / "guides" / "team.md").read_text()
REUSED = {"load_backbone", "read_texts", "tokenize", "calibrate", "decompose"}


def commands(section: str) -> list[str]:
    """The commands of a section of the guide."""
    text = GUIDE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


@dataclass(frozen=True)
class Member:
    """A clone, and who works in it."""

    root: Path
    name: str
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, command: str, code: int = 0) -> str:
        """What a command of the shell tells."""
        own = {**os.environ, **self.environment, "LOGNAME": self.name, "GIT_AUTHOR_NAME": self.name}
        done = subprocess.run(
            command, shell=True, cwd=self.root, env=own, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == code, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def stages(self) -> dict[str, tuple[str, str]]:
        """Task and digest of every cache key in the store."""
        found = {path.stem: json.loads(path.read_bytes()) for path in self.root.glob("store/keys/*.json")}
        return {key: (record["stage"]["task"], record["digest"]) for key, record in found.items()}

    def published(self) -> dict[str, bytes]:
        """The files of the checkpoint and of the results; the mark beside results is of the machine that wrote them."""
        roots = (self.root / "models" / "compressed", self.root / "results")
        own = self.root / "results" / MARK
        paths = [path for root in roots for path in root.rglob("*") if path.is_file() and path != own]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths if path.name != ".gitignore"}


def write_repository(folder: Path, uri: str) -> None:
    """The code of this project around a tiny model and a text."""
    folder.mkdir()
    for name in ("flows", "tasks", "mgaa", "demo"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    for name in (".dvcignore", ".gitignore", "steps.lock"):
        shutil.copy(ROOT / name, folder)
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    del pipeline["stages"]["vision"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    (folder / "texts.txt").write_text("\n\n".join(texts := documents(seed=1)), encoding="utf-8")
    write_model(folder / "models" / "demo", texts)
    parameters = yaml.safe_load((ROOT / "params.yaml").read_text())
    ranges = {"calibration": (0.0, 0.5), "validation": (0.5, 0.7), "evaluation": (0.7, 1.0), "recovery": (0.0, 0.5)}
    for section, (start, end) in ranges.items():
        own = {"source": "texts.txt", "from": start, "to": end, "length": 32, "samples": 24}
        parameters["data"][section] |= own
    parameters["statistics"]["groups"] = 4
    parameters["evaluation"] |= {"tasks": [], "limit": 6}
    parameters["tracking"]["uri"] = uri
    parameters["registry"] = {
        "model": "ours",
        "gate": {"perplexity": 2.0, "model_compression": 0.01, "accuracy": None, "champion": None},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    tracking = TrackingServer(tmp_path, free_port())
    with tracking.running() as uri:
        yield uri


@pytest.fixture
def environment(tmp_path: Path, prefect_server: str) -> dict[str, str]:
    """One server of Prefect for all, and nothing of the user's."""
    people = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "A"), ("EMAIL", "a@b"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {
        "PREFECT_API_URL": prefect_server,
        "PATH": path,
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
        "PYTHONPATH": "",
        "COLUMNS": "300",
    }
    return {**people, **own}


def clone(origin: Path, folder: Path, name: str, environment: dict[str, str]) -> Member:
    subprocess.run(["git", "clone", "--quiet", str(origin), str(folder)], check=True)
    return Member(folder, name, environment)


def queue_ended(member: Member) -> bool:
    told = member.run("dvc queue status")
    assert "Failed" not in told, member.run("dvc queue logs $(dvc queue status | awk '/Failed/ {print $1}')")
    return "Success" in told


def test_two_members_one_remote_one_tracking_server(server: str, environment: dict[str, str], tmp_path: Path) -> None:
    shared, origin = tmp_path / "mnt team", tmp_path / "origin.git"
    write_repository(tmp_path / "start", server)
    start = Member(tmp_path / "start", "ada", environment)
    start.run("git init --quiet --initial-branch=main && git add --all")
    for command in commands("Set up once"):
        if not command.startswith(("mlflow", "export")):
            start.run(command.replace("/mnt/team", f"'{shared}'"))
    subprocess.run(["git", "clone", "--quiet", "--bare", str(start.root), str(origin)], check=True)

    ada = clone(origin, tmp_path / "ada", "ada", environment)
    for command in commands("Run and push"):
        ada.run(command)
    assert ada.run("git status --porcelain") == ""

    ben = clone(origin, tmp_path / "ben", "ben", environment)
    pulling, status, store_pull, experiment, show = commands("Pull and continue")[:5]
    ben.run(pulling)
    assert ben.published() == ada.published()
    assert "up to date" in ben.run(status)
    assert not (ben.root / "store" / "keys").exists()
    told = ben.run(store_pull)
    assert ben.stages() == ada.stages(), told
    ben.run(experiment)
    executed = Counter(task for key, (task, _) in ben.stages().items() if key not in ada.stages())
    assert not REUSED & executed.keys()
    assert executed["evaluate"] == executed["assemble"] == 2  # uniform and the method; the dense model is as it was
    table = ben.run(show)
    assert "0.3" in table
    queued, begin, _, publishing = commands("Pull and continue")[5:]
    before = ben.stages()
    ben.run(queued)
    ben.run(begin)
    deadline = time.monotonic() + 200
    while not queue_ended(ben):
        assert time.monotonic() < deadline, "the queue does not end"
        time.sleep(0.5)
    executed = Counter(task for key, (task, _) in ben.stages().items() if key not in before)
    assert not REUSED & executed.keys()
    assert executed["evaluate"] == 2
    ben.run(publishing)

    check_tracking(server)
    for command in commands("Side by side"):
        told = ben.run(command)
    compared = json.loads(told)
    assert compared["parameters"]["ratios.compression"] == ["0.2", "0.3", "0.4"]
    sizes = compared["metrics"]["bytes/mgaa"]
    assert sizes == sorted(sizes, reverse=True)
    listing, promoting, refused = commands("The champion")
    assert "candidate" in ben.run(listing)
    assert "Version 1 of ours is the champion" in ada.run(promoting)
    told = ben.run(refused, code=3)
    assert re.search(r"model_compression is 0\.\d+, expected at least 0\.9 .*version 1 stays champion", told)
    assert MlflowClient(server).get_model_version_by_alias("ours", "champion").version == "1"
    (upload,) = commands("Without the server")
    assert "0 runs uploaded" in ben.run(upload)


def check_tracking(uri: str) -> None:
    """Both members are in the server, with the commit, the experiment and the record, and their checkpoints are registered."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mgaa")
    runs: list[Any] = [*client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])]
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert [run.data.tags["mlflow.user"] for run in runs] == ["ada", "ben", "ben"]
    assert "dvc.experiment" in runs[1].data.tags
    versions = client.search_model_versions("name = 'ours'")
    assert {version.run_id for version in versions} == {run.info.run_id for run in runs}
    assert all(version.tags["run.record"] for version in versions)
    files = {each.path for each in client.list_artifacts(runs[0].info.run_id, "checkpoint")}
    assert {"checkpoint/config.json", "checkpoint/manifest.json"} <= files
