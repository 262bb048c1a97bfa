"""An audit compares everything that `dvc.lock` tells of a run, and nothing of another run's."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgaa.errors import InputError
from tasks.audit.references import resolve_target
from tasks.audit.verify_dvc import verify_lock
from tasks.record.findings import Finding
from tests.support.audited import Audited, audited, flipped, named, rewrite

OWN = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
SECTIONS = ("method", "methods", "cases.language", "statistics", "factors", "ratios", "evaluation")
PUBLISHED = ("allocation.json", "figures", "plots", "report.html", "record.json")


def command(folder: Path, *words: str) -> str:
    own = {**os.environ, **OWN, "DVC_SITE_CACHE_DIR": str(folder.parent / "site"), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(words, cwd=folder, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    """A run in a repository of git whose stages DVC has locked, with the commit in its record; a test that breaks it mends it."""
    lab = audited(tmp_path_factory.mktemp("versioned") / "project")
    folder, stages = lab.folder, {}
    (folder / "prepared.txt").write_text("texts")
    (folder / "code").mkdir()
    (folder / "code" / "step.py").write_text("pass")
    (folder / "steps.lock").write_text(yaml.safe_dump({"steps": {"read_texts": "0f"}}))
    stages["data"] = {
        "cmd": "python -m flows.prepare_data",
        "deps": ["code"],
        "params": [{"steps.lock": ["steps.read_texts"]}],
        "outs": ["prepared.txt"],
    }
    stages["compress"] = {
        "cmd": "python -m flows.compress --quiet",
        "deps": ["prepared.txt", "code"],
        "params": list(SECTIONS),
        "outs": ["models/compressed", *(f"results/{name}" for name in PUBLISHED)],
        "metrics": ["results/metrics.json"],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (folder / ".gitignore").write_text("/store\n/results\n/models\n/prepared.txt\n/mlflow.db\n/mlruns\n")
    for words in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"], ["git", "add", "."]):
        command(folder, *words)
    command(folder, "git", "commit", "--quiet", "-m", "one")
    recorded = {"commit": command(folder, "git", "rev-parse", "HEAD").strip(), "dirty": False}
    rewrite(lab, git=recorded, tags={"dvc.stage": "compress"})
    command(folder, sys.executable, "-m", "dvc", "commit", "--force", "--quiet")
    command(folder, "git", "add", "dvc.lock")
    command(folder, "git", "commit", "--quiet", "-m", "two")
    return Audited(lab.p, lab.store, resolve_target(lab.p, lab.store, "last"))


def findings(lab: Audited) -> list[Finding]:
    record = json.loads((lab.store.path_of(lab.run) / "record.json").read_bytes())
    return [*verify_lock(lab.p, lab.run, record)]


def disagreements(lab: Audited) -> str:
    return named([each for each in findings(lab) if each.kind == "disagrees"])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all plain values of a nested one."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from leaves(inner, (*path, key))
    if not isinstance(value, dict | list):
        yield path


def altered(value: Any) -> Any:
    """Another value of the same type, as somebody might put there."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value[:-1] + ("b" if value[-1:] != "b" else "c")


def test_nothing_is_found_in_a_lock_that_nobody_changed(versioned: Audited) -> None:
    assert findings(versioned) == []


@pytest.mark.slow
def test_a_changed_value_of_a_lock_is_found(versioned: Audited) -> None:
    path = versioned.folder / "dvc.lock"
    whole = path.read_text()
    lock = yaml.safe_load(whole)
    places = [place for place in leaves(lock["stages"]) if place[-1] != "hash"]
    for place in random.Random(0).sample(places, 40):
        changed = yaml.safe_load(whole)
        inner = changed["stages"]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = altered(inner[place[-1]])
        path.write_text(yaml.safe_dump(changed, sort_keys=False))
        found = disagreements(versioned)
        path.write_text(whole)
        assert "dvc.lock" in found, place
    assert findings(versioned) == []


def test_a_changed_value_of_a_file_other_than_the_parameters_is_found(versioned: Audited) -> None:
    path = versioned.folder / "dvc.lock"
    whole = path.read_text()
    path.write_text(whole.replace("steps.read_texts: 0f", "steps.read_texts: 0a"))
    found = disagreements(versioned)
    path.write_text(whole)
    assert "data.params, steps.lock, steps.read_texts" in found


@pytest.mark.parametrize("name", ["models/compressed/config.json", "results/metrics.json", "prepared.txt"])
def test_a_file_that_is_not_the_one_of_the_lock_is_found(versioned: Audited, name: str) -> None:
    mend = flipped(versioned.folder / name, 3)
    found = disagreements(versioned)
    mend()
    assert ("models/compressed" if name.startswith("models") else name) in found


@pytest.mark.parametrize("part", ["deps", "outs", "params"])
def test_an_entry_that_was_taken_out_of_a_lock_is_found(versioned: Audited, part: str) -> None:
    path = versioned.folder / "dvc.lock"
    whole = path.read_text()
    lock = yaml.safe_load(whole)
    entries = lock["stages"]["compress"][part]
    if part == "params":
        del entries["params.yaml"]["ratios"]
    else:
        del entries[0]
    path.write_text(yaml.safe_dump(lock))
    found = disagreements(versioned)
    path.write_text(whole)
    assert f"compress.{part}" in found


def test_a_missing_out_is_found(versioned: Audited) -> None:
    path = versioned.folder / "prepared.txt"
    path.rename(path.with_suffix(".away"))
    found = disagreements(versioned)
    path.with_suffix(".away").rename(path)
    assert "prepared.txt: is missing" in found


def test_a_run_by_hand_is_not_measured_by_the_lock_of_another(versioned: Audited) -> None:
    whole = (versioned.p.results / "record.json").read_bytes()
    run = rewrite(versioned, tags={}, end="2030-01-01T00:00:00+00:00")
    by_hand = Audited(versioned.p, versioned.store, run)
    found = findings(by_hand), findings(versioned)
    (versioned.p.results / "record.json").write_bytes(whole)
    for each in found:
        assert [one.kind for one in each] == ["unchecked"]
    assert "does not name" in named(found[0])
    assert "another run has published" in named(found[1])


def test_a_lock_that_names_another_record_than_its_stage_has_published_is_found(versioned: Audited) -> None:
    path = versioned.folder / "dvc.lock"
    whole = path.read_text()
    lock = yaml.safe_load(whole)
    for out in lock["stages"]["compress"]["outs"]:
        if out["path"] == "results/record.json":
            out["md5"] = "0" * 32
    path.write_text(yaml.safe_dump(lock))
    found = disagreements(versioned)
    path.write_text(whole)
    assert "names another record" in found


def test_code_that_changed_since_is_no_disagreement(versioned: Audited) -> None:
    path = versioned.folder / "code" / "step.py"
    path.write_text("changed")
    found = findings(versioned)
    path.write_text("pass")
    assert found == []


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"stages: [",
        b"[]",
        b"stages: 3",
        b"a: &a [*a]",
        b"stages: {compress: {cmd: 3}}",
        b"x" * 100,
        b"\x00",
    ],
)
def test_a_damaged_lock_is_one_finding(versioned: Audited, content: bytes) -> None:
    path = versioned.folder / "dvc.lock"
    whole = path.read_bytes()
    path.write_bytes(content)
    found = findings(versioned)
    path.write_bytes(whole)
    assert [each.kind for each in found] == ["disagrees"]
    assert "git checkout" in str(found[0])


def test_a_revision_of_dvc_leads_to_its_run(versioned: Audited) -> None:
    assert resolve_target(versioned.p, versioned.store, "dvc:HEAD") == versioned.run
    with pytest.raises(InputError, match=r"git has no dvc\.lock at 'nowhere'"):
        resolve_target(versioned.p, versioned.store, "dvc:nowhere")
