"""The store keeps what it is given, names it by content, and notices every alteration."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mgaa.checkpoints.ownership import MARK
from tasks.cache.artifact import MANIFEST, Artifact, DamagedError, Store
from tasks.cache.manifest import content_digest, digest, readable


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, files: dict[str, str], kind: str = "texts", **record: object) -> Artifact:
    with store.writing(kind) as out:
        for name, content in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(content)
        return store.seal(out, kind, record)


def test_an_artifact_holds_what_was_written_and_says_where_it_comes_from(store: Store) -> None:
    artifact = put(store, {"a.txt": "first", "deep/b.txt": "second"}, task="read", parameters={"split": "test"})
    folder = store.folder(artifact)
    assert (folder / "a.txt").read_text() == "first"
    assert (folder / "deep" / "b.txt").read_text() == "second"
    manifest = store.manifest(artifact)
    assert manifest["task"] == "read"
    assert manifest["parameters"] == {"split": "test"}
    assert manifest["files"]["deep/b.txt"]["size"] == 6


def test_the_digest_is_over_content_alone(store: Store) -> None:
    first = put(store, {"a.txt": "x", "b.txt": "y"}, start="today")
    again = put(store, {"b.txt": "y", "a.txt": "x"}, start="tomorrow")
    assert first == again
    assert store.manifest(again)["start"] == "today"
    assert len(list((store.path / "texts").iterdir())) == 1


@pytest.mark.parametrize("files", [{"a.txt": "x", "b.txt": "z"}, {"a.txt": "x", "c.txt": "y"}, {"a.txt": "x"}])
def test_every_name_and_every_byte_counts(store: Store, files: dict[str, str]) -> None:
    assert put(store, files) != put(store, {"a.txt": "x", "b.txt": "y"})


def test_the_kind_counts(store: Store) -> None:
    assert put(store, {"a.txt": "x"}, kind="texts").digest != put(store, {"a.txt": "x"}, kind="tokens").digest


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": lambda folder: flip(folder / "a.txt"),
    "a truncated file": lambda folder: (folder / "a.txt").write_bytes(b"conte"),
    "an empty file": lambda folder: (folder / "a.txt").write_bytes(b""),
    "a missing file": lambda folder: (folder / "a.txt").unlink(),
    "a file too many": lambda folder: (folder / "b.txt").write_text("stray"),
    "a folder in place of a file": lambda folder: ((folder / "a.txt").unlink(), (folder / "a.txt").mkdir()),
    "a link in place of a file": lambda folder: (
        (folder / "a.txt").rename(folder.parent / "elsewhere"),
        (folder / "a.txt").symlink_to(folder.parent / "elsewhere"),
    ),
    "a missing manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a truncated manifest": lambda folder: (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:-9]),
    "an empty manifest": lambda folder: (folder / MANIFEST).write_bytes(b""),
    "a manifest that is a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "a manifest of another encoding": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "an altered fact in the manifest": lambda folder: edit(folder / MANIFEST, lambda m: m.update(task="other")),
    "an altered size in the manifest": lambda folder: edit(
        folder / MANIFEST, lambda m: m["files"]["a.txt"].update(size=8)
    ),
    "a missing folder": lambda folder: folder.rename(folder.parent / "moved"),
    "a file in place of the folder": lambda folder: (folder.rename(folder.parent / "moved"), folder.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_every_damage_is_noticed(store: Store, damage: Callable[[Path], object]) -> None:
    artifact = put(store, {"a.txt": "content"}, task="read")
    folder = store.folder(artifact)
    damage(folder)
    touch(folder / "a.txt")
    with pytest.raises(DamagedError, match=artifact.digest):
        store.folder(artifact)


def touch(path: Path) -> None:
    """Move the time of change: what is altered within one tick of the clock, unnoticed, is no truth about files."""
    if path.is_file():
        os.utime(path, ns=(path.stat().st_mtime_ns + 10**9,) * 2)


def test_a_touched_file_is_sound(store: Store) -> None:
    artifact = put(store, {"a.txt": "content"})
    touch(store.folder(artifact) / "a.txt")
    assert store.sound(artifact)


def test_a_manifest_moved_to_another_artifact_is_noticed(store: Store) -> None:
    first, second = put(store, {"a.txt": "x"}), put(store, {"a.txt": "y"})
    (store.place(first) / MANIFEST).write_bytes((store.place(second) / MANIFEST).read_bytes())
    with pytest.raises(DamagedError, match="not its folder"):
        store.folder(first)


@pytest.mark.parametrize(
    "name", ["../stolen.txt", "/etc/hostname", "deep/../../stolen.txt", "a//b", "", MANIFEST, "a\\b"]
)
def test_a_manifest_cannot_name_a_file_outside_its_folder(store: Store, name: str) -> None:
    entry = {"size": 3, "sha256": digest("x")}
    artifact = Artifact("texts", content_digest("texts", {name: entry["sha256"]}))
    folder = store.place(artifact)
    folder.mkdir(parents=True)
    (store.path / "texts" / "stolen.txt").write_text("abc")
    manifest = {"kind": "texts", "digest": artifact.digest, "files": {name: entry}}
    (folder / MANIFEST).write_bytes(readable({**manifest, "seal": digest(manifest)}))
    with pytest.raises(DamagedError, match="does not stay inside"):
        store.folder(artifact)


@pytest.mark.parametrize(
    ("kind", "name"), [("../../etc", "0" * 64), ("texts", "../x"), ("Texts", "0" * 64), ("texts", "abc")]
)
def test_an_artifact_has_a_plain_kind_and_a_sha256(kind: str, name: str) -> None:
    with pytest.raises(DamagedError, match="expected a lower-case kind"):
        Artifact(kind, name)


def test_a_link_is_not_sealed(store: Store, tmp_path: Path) -> None:
    with store.writing("texts") as out:
        (out / "a.txt").symlink_to(tmp_path)
        with pytest.raises(DamagedError, match="is a link"):
            store.seal(out, "texts", {})


def test_a_step_that_writes_nothing_is_a_mistake(store: Store) -> None:
    with pytest.raises(RuntimeError, match="wrote no file"):
        put(store, {})


def test_a_failing_writer_leaves_nothing(store: Store) -> None:
    def half() -> None:
        with store.writing("texts") as out:
            (out / "half.txt").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert list((store.path / "texts").iterdir()) == []


def test_a_damaged_artifact_is_replaced_when_it_is_made_again_and_kept_as_evidence(store: Store) -> None:
    artifact = put(store, {"a.txt": "content"})
    for round_ in (1, 2):
        (store.place(artifact) / "a.txt").write_text(f"damage {round_}")
        assert put(store, {"a.txt": "content"}) == artifact
        assert (store.folder(artifact) / "a.txt").read_text() == "content"
        kept = store.path / "quarantine" / f"texts-{artifact.digest}-{round_}"
        assert (kept / "a.txt").read_text() == f"damage {round_}"


def test_an_export_is_a_copy_with_the_manifest_and_what_is_added(store: Store, tmp_path: Path) -> None:
    artifact = put(store, {"model.txt": "weights"}, task="assemble")
    target = tmp_path / "models" / "compressed"
    store.export(put(store, {"old.txt": "of the last run"}), target)
    store.export(artifact, target, {"evaluation.json": b"{}"})
    assert sorted(path.name for path in target.iterdir()) == [MARK, "evaluation.json", MANIFEST, "model.txt"]
    (target / "model.txt").write_text("edited by hand")
    assert store.sound(artifact)
    assert [path.name for path in target.parent.iterdir()] == ["compressed"]


def test_an_export_that_fails_leaves_the_last_one(store: Store, tmp_path: Path) -> None:
    artifact = put(store, {"model.txt": "weights"})
    target = tmp_path / "models" / "compressed"
    store.export(artifact, target)
    with pytest.raises(DamagedError, match="does not stay inside"):
        store.export(artifact, target, {"../evaluation.json": b"{}"})
    assert (target / "model.txt").read_text() == "weights"
    assert [path.name for path in target.parent.iterdir()] == ["compressed"]


def test_keys_lead_to_artifacts_in_a_copy_of_the_store_as_well(store: Store, tmp_path: Path) -> None:
    artifact, stage = put(store, {"a.txt": "x"}), {"task": "read", "parameters": {"split": "test"}}
    store.remember(digest(stage), artifact, stage)
    store.path.rename(tmp_path / "moved")
    assert Store(tmp_path / "moved").recall(digest(stage)) == artifact
    assert store.recall(digest(stage)) is None


def test_a_record_holds_the_artifact_and_the_stage_in_plain_sight(store: Store) -> None:
    artifact, stage = put(store, {"a.txt": "x"}), {"task": "read"}
    store.remember(digest(stage), artifact, stage)
    record = json.loads((store.path / "keys" / f"{digest(stage)}.json").read_text())
    assert (record["kind"], record["digest"], record["stage"]) == ("texts", artifact.digest, stage)
