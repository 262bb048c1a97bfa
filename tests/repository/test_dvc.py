"""DVC's coarse stages fit the repository: what it writes git ignores, what it reads is there, and nothing tracked changes but its lock.

The mechanics run on the real configuration with two commands in place of the flows, which have tests of their own.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.artifacts.allocation_table import plot_tables
from tasks.config.parameters import load_parameters
from tests.support.finished import finished_run

ROOT = Path(__file__).resolve().parents[2]
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, Any] = PIPELINE["stages"]
OUTS = [out for stage in STAGES.values() for out in (*stage["outs"], *stage.get("metrics", []))]
WRITE = """
import pathlib, shutil, sys, yaml
for out in sys.argv[2:]:
    path = pathlib.Path(out) if pathlib.Path(out).suffix else pathlib.Path(out, "file.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"compression": %s}' % yaml.safe_load(open("params.yaml"))["ratios"]["compression"])
"""
OWN = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b"}


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def dvc(folder: Path, *words: str) -> str:
    own = {**os.environ, **OWN, "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git repository with our configuration, small dependencies and commands that write their outs."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in (".dvcignore", ".gitignore", "params.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    (folder / "write.py").write_text(WRITE)
    pipeline = {"stages": {name: {**stage, "cmd": command(name)} for name, stage in STAGES.items()}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    for dependency in {dep for stage in STAGES.values() for dep in stage["deps"]} - set(OUTS):
        path = folder / dependency if Path(dependency).suffix else folder / dependency / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dependency)
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder)
    return folder


def command(stage: str) -> str:
    outs = [*STAGES[stage]["outs"], *STAGES[stage].get("metrics", [])]
    return f"{sys.executable} write.py {stage} {' '.join(outs)}"


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=A", "-c", "user.email=a@b", "commit", "--quiet", "--message", "state")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_a_flow_that_exists(name: str) -> None:
    (module,) = re.findall(r"^python -m ([\w.]+)", STAGES[name]["cmd"])
    assert ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file()


def test_every_dependency_is_in_the_repository_or_made_by_a_stage() -> None:
    for dependency in {dep for stage in STAGES.values() for dep in stage["deps"]}:
        assert dependency in OUTS or (ROOT / dependency).exists(), dependency


@pytest.mark.slow
def test_every_plot_draws_columns_of_a_table_that_a_run_writes() -> None:
    run = finished_run()
    tables = plot_tables(run.published["allocation"], run.published["metrics"]["models"])
    for plot in (each for entry in PIPELINE["plots"] if isinstance(entry, dict) for each in entry.values()):
        assert (ROOT / ".dvc" / "plots" / f"{plot['template']}.json").is_file()
        for axis in ("x", "y"):
            ((path, column),) = plot[axis].items()
            folder, name = path.rsplit("/", 1)
            assert folder == "results/plots"
            assert column in tables[name].partition("\n")[0].split(",")
    images = [entry for entry in PIPELINE["plots"] if isinstance(entry, str)]
    figures = run.parameters.folder / "results" / "figures"
    assert sorted(images) == sorted(f"results/figures/{path.name}" for path in figures.glob("*.png"))


@pytest.mark.slow
def test_a_run_changes_nothing_that_git_tracks_but_the_lock(checkout: Path) -> None:
    dvc(checkout, "repro", "--quiet")
    assert git(checkout, "status", "--porcelain") == "?? dvc.lock\n"
    assert all((checkout / out).exists() for out in OUTS)
    commit(checkout)
    assert "up to date" in dvc(checkout, "repro")
    assert git(checkout, "status", "--porcelain") == ""


@pytest.mark.slow
def test_experiments_override_numbers_and_lists_one_after_the_other(checkout: Path) -> None:
    dvc(checkout, "repro", "--quiet")
    commit(checkout)
    dvc(checkout, "exp", "run", "--set-param", "ratios.compression=0.3")  # DVC writes the file anew
    overrides = ["evaluation.tasks=[]", "evaluation.baselines=[uniform,level2]"]
    dvc(checkout, "exp", "run", *(word for override in overrides for word in ("--set-param", override)))
    parameters = load_parameters(checkout / "params.yaml")
    assert parameters.ratios.compression == 0.3
    assert (parameters.evaluation.tasks, parameters.evaluation.baselines) == ([], ["uniform", "level2"])
    assert "0.1" in dvc(checkout, "metrics", "diff")
    kept = (ROOT / "params.yaml").read_text().splitlines()
    comments = [line.partition("#")[2] for line in kept if "#" in line]
    assert [text for text in comments if text not in (checkout / "params.yaml").read_text()] == []


@pytest.mark.slow
def test_results_travel_through_a_remote(checkout: Path, tmp_path: Path) -> None:
    dvc(checkout, "repro", "--quiet")
    commit(checkout)
    dvc(checkout, "remote", "add", "--local", "--default", "team", str(tmp_path / "remote"))
    dvc(checkout, "push")
    git(tmp_path, "clone", "--quiet", str(checkout), "other")
    dvc(tmp_path / "other", "remote", "add", "--local", "--default", "team", str(tmp_path / "remote"))
    dvc(tmp_path / "other", "pull")
    for out in OUTS:
        path = Path(out) if Path(out).suffix else Path(out, "file.json")
        assert (tmp_path / "other" / path).read_bytes() == (checkout / path).read_bytes()
    assert git(tmp_path / "other", "status", "--porcelain") == ""
