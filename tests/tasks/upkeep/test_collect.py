"""A collection removes what nothing needs, and never what a checkpoint, a revision of DVC, a pin or a running flow needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mgaa.errors import InputError, LockedError
from tasks.audit.references import artifacts
from tasks.audit.verify_store import verify_store
from tasks.cache.artifact import Artifact
from tasks.cache.manifest import DamagedError, readable
from tasks.record.run_record import digest_of, md5
from tasks.upkeep.collect import collect, entries, sizes
from tasks.upkeep.pins import pin, pins, unpin
from tasks.upkeep.store_lock import alone, in_use
from tests.support.audited import Audited, audited
from tests.support.finished import finished_run

OWN = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b"}


@pytest.fixture
def lab(tmp_path: Path) -> Audited:
    return audited(tmp_path / "lab")


def left(lab: Audited, *, runs: int = 0) -> set[Artifact]:
    """What a collection leaves, after the check that it leaves a sound store."""
    collect(lab.p, lab.store, latest=runs, dry=False, wait=0.0)
    assert not [each for each in verify_store(lab.store).findings if each.kind == "disagrees"]
    return {*artifacts(lab.store)}


def unexported(lab: Audited) -> None:
    """Take away what a run exports."""
    shutil.rmtree(lab.folder / "models")
    shutil.rmtree(lab.folder / "results")


def git(folder: Path, *words: str) -> str:
    own = {**os.environ, **OWN}
    return subprocess.run(["git", *words], cwd=folder, env=own, check=True, capture_output=True, text=True).stdout


def commit_lock(lab: Audited, record: bytes, message: str) -> None:
    """A commit whose `dvc.lock` names a record."""
    outs = [{"path": "results/record.json", "hash": "md5", "md5": md5(record), "size": len(record)}]
    (lab.folder / "dvc.lock").write_text(
        yaml.safe_dump({"schema": "2.0", "stages": {"compress": {"cmd": "true", "outs": outs}}})
    )
    git(lab.folder, "add", "dvc.lock")
    git(lab.folder, "commit", "--quiet", "-m", message)


def test_what_a_run_needs_is_all_of_it_and_what_nothing_needs_goes(lab: Audited) -> None:
    everything = {*artifacts(lab.store)}
    assert left(lab, runs=1) == everything
    unexported(lab)
    assert left(lab) == set()
    assert not [*(lab.store.path / "keys").iterdir()]


def test_a_checkpoint_keeps_what_is_behind_it_alone(lab: Audited) -> None:
    shutil.rmtree(lab.folder / "results")
    run = finished_run().results
    kept = left(lab)
    assert {run.models["mgaa"].checkpoint, run.backbone, run.statistics, *run.spectra} <= kept
    assert run.models["uniform"].checkpoint not in kept
    assert run.dense.metrics not in kept


def test_a_pin_keeps_an_artifact_with_all_behind_it_until_it_is_taken_away(lab: Audited) -> None:
    unexported(lab)
    ranks = finished_run().results.models["uniform"].ranks
    pin(lab.store, ranks, "the paper's")
    assert [(each.artifact, each.why) for each in pins(lab.store)] == [(ranks, "the paper's")]
    kept = left(lab)
    assert {ranks, finished_run().results.statistics} <= kept
    assert finished_run().results.models["uniform"].checkpoint not in kept
    unpin(lab.store, ranks)
    with pytest.raises(InputError, match="is not pinned"):
        unpin(lab.store, ranks)
    assert left(lab) == set()


def test_every_revision_of_dvc_keeps_its_run_those_of_branches_and_experiments_too(lab: Audited) -> None:
    record = (lab.p.results / "record.json").read_bytes()
    unexported(lab)
    git(lab.folder, "init", "--quiet", "--initial-branch=main")
    commit_lock(lab, b"of a run elsewhere", "one")
    git(lab.folder, "checkout", "--quiet", "-b", "other")
    commit_lock(lab, record, "two")
    git(lab.folder, "update-ref", "refs/exps/aa/bb/name", "HEAD")
    git(lab.folder, "checkout", "--quiet", "main")
    git(lab.folder, "branch", "--quiet", "-D", "other")
    git(lab.folder, "reflog", "expire", "--expire=now", "--all")
    everything = {*artifacts(lab.store)}
    assert left(lab) == everything
    git(lab.folder, "update-ref", "-d", "refs/exps/aa/bb/name")
    assert left(lab) == set()


def test_a_checkpoint_in_the_cache_of_dvc_keeps_what_it_needs(lab: Audited) -> None:
    import json

    manifest = (lab.folder / "models" / "compressed" / "manifest.json").read_bytes()
    unexported(lab)
    listing = json.dumps([{"md5": md5(manifest), "relpath": "manifest.json"}]).encode()
    cache = lab.folder / ".dvc" / "cache" / "files" / "md5"
    for name, content in ((md5(manifest), manifest), (f"{md5(listing)}.dir", listing)):
        (cache / name[:2]).mkdir(parents=True, exist_ok=True)
        (cache / name[:2] / name[2:]).write_bytes(content)
    outs = [{"path": "models/compressed", "hash": "md5", "md5": f"{md5(listing)}.dir"}]
    (lab.folder / "dvc.lock").write_text(
        yaml.safe_dump({"schema": "2.0", "stages": {"compress": {"cmd": "true", "outs": outs}}})
    )
    kept = left(lab)
    assert finished_run().results.models["mgaa"].checkpoint in kept
    assert finished_run().results.models["uniform"].checkpoint not in kept


def test_where_it_cannot_be_told_what_is_needed_nothing_goes(lab: Audited) -> None:
    everything = {*artifacts(lab.store)}
    path = lab.folder / "models" / "compressed" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"assemble", b"dissolve"))
    with pytest.raises(DamagedError, match="was altered"):
        collect(lab.p, lab.store, latest=0, dry=False, wait=0.0)
    shutil.rmtree(lab.folder / "models")
    (lab.folder / "dvc.lock").write_text("<<<<<<< ours\n\tstages: [")
    with pytest.raises(DamagedError, match="resolve it"):
        collect(lab.p, lab.store, latest=0, dry=False, wait=0.0)
    assert {*artifacts(lab.store)} == everything


def test_nothing_goes_while_a_flow_runs_whoever_runs_it(lab: Audited) -> None:
    unexported(lab)
    hold = "import sys, pathlib, tasks.upkeep.store_lock as t\nwith t.in_use(pathlib.Path(sys.argv[1])): print(flush=True); input()"
    pipe = subprocess.PIPE
    holder = subprocess.Popen([sys.executable, "-c", hold, str(lab.store.path)], stdin=pipe, stdout=pipe, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(LockedError, match="A run uses the store"):
        collect(lab.p, lab.store, latest=0, dry=False, wait=0.2)
    holder.kill()  # the lock dies with its holder
    holder.wait()
    assert left(lab) == set()


def test_runs_share_a_store_and_housekeeping_has_it_alone(tmp_path: Path) -> None:
    with in_use(tmp_path), in_use(tmp_path), pytest.raises(LockedError), alone(tmp_path, 0.0):
        pass
    with alone(tmp_path, 0.0), pytest.raises(LockedError), alone(tmp_path, 0.0):
        pass


def test_a_dry_collection_says_the_same_and_removes_nothing(lab: Audited) -> None:
    unexported(lab)
    everything = {*artifacts(lab.store)}
    would = collect(lab.p, lab.store, latest=0, dry=True, wait=0.0)
    assert {*artifacts(lab.store)} == everything
    done = collect(lab.p, lab.store, latest=0, dry=False, wait=0.0)
    assert done == would
    assert done.bytes > 0


def test_a_list_and_sizes_tell_what_is_there(lab: Audited) -> None:
    pin(lab.store, lab.run, "")
    listed = {entry.artifact: entry for entry in entries(lab.store)}
    assert listed.keys() == {*artifacts(lab.store)}
    assert [each for each, entry in listed.items() if entry.pinned] == [lab.run]
    found = sizes(lab.store)
    assert found["factors"]["count"] == len([*lab.store.path.glob("factors/*")])
    assert found["factors"]["bytes"] == sum(
        each.stat().st_size for each in lab.store.path.glob("factors/*/*") if each.is_file()
    )


def test_a_published_record_names_its_run(lab: Audited) -> None:
    assert digest_of((lab.p.results / "record.json").read_bytes()) == lab.run
    assert digest_of(readable({})) != lab.run
