"""An audit finds any single changed byte, says where, and finds nothing where nothing was changed."""

import hashlib
import json
import random
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mgaa.errors import InputError
from tasks.audit.verify import audit
from tasks.audit.verify_run import verify_inputs, verify_prepared, verify_published
from tasks.audit.verify_store import verify_store
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import DamagedError, content_digest, digest, format_json
from tasks.record.lineage import ancestry
from tasks.record.run_record import Span, keep_record
from tasks.record.signing import check_key, find_signer, sign, verify_signature
from tests.support.audited import Audited, audited, flipped, named
from tests.support.finished import finished_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    """A run that is in MLflow as well; a test that breaks it mends it."""
    return audited(tmp_path_factory.mktemp("audit") / "essai d'été", track=True)


def test_nothing_is_found_where_nothing_was_changed(whole: Audited) -> None:
    found = audit(whole.p, whole.store, whole.run)
    assert not found.disagreements, named(found.disagreements)
    assert found.store.artifacts == len([*whole.store.path.glob("*/" + "?" * 64)])
    assert {each.where for each in found.unchecked} <= {"git", str(whole.run), str(whole.folder / "dvc.lock")}


def test_what_a_step_has_done_so_far_is_no_damaged_artifact(whole: Audited) -> None:
    begun = whole.store.path / "unfinished" / ("0" * 64)
    begun.mkdir(parents=True)
    (begun / "block-0000.safetensors").write_bytes(b"half")
    found = audit(whole.p, whole.store, whole.run).disagreements
    shutil.rmtree(begun.parent)
    assert not found, named(found)


def test_one_changed_byte_of_any_file_of_the_store_is_found(whole: Audited) -> None:
    draw = random.Random(0)
    files = sorted(
        path
        for path in whole.store.path.rglob("*")
        if path.is_file() and path.parent.name != "locks" and path.name not in ("in-use", "identity")
    )
    assert len(files) > 60
    for path in files:
        mend = flipped(path, draw.randrange(1 << 20))
        assert verify_store(whole.store).findings, path
        mend()
    assert not verify_store(whole.store).findings


def test_one_changed_byte_of_any_published_file_is_found(whole: Audited) -> None:
    draw, record = random.Random(1), json.loads((whole.p.results / "record.json").read_bytes())
    for name in (*record["published"], "results/record.json"):
        mend = flipped(whole.folder / name, draw.randrange(1 << 20))
        assert Path(name).name in named([*verify_published(whole.p, whole.run, record)]), name
        mend()
    assert not [*verify_published(whole.p, whole.run, record)]


def test_one_changed_byte_of_any_input_is_found(whole: Audited, tmp_path: Path) -> None:
    record = json.loads((whole.p.results / "record.json").read_bytes())
    moved = json.loads(json.dumps(record).replace(str(finished_run().parameters.folder), str(whole.folder)))
    assert not [*verify_inputs(whole.p, moved)]
    inputs = [*(whole.folder / "model").glob("[!.]*"), *whole.folder.glob("*.jsonl")]
    assert len(inputs) == len(record["sources"]["backbone"]) + 3
    for path in inputs:
        mend = flipped(path, 40)
        assert path.name in named([*verify_inputs(whole.p, moved)])
        mend()


def test_the_texts_that_dvc_versions_are_looked_at_where_they_are_those_of_the_run(whole: Audited) -> None:
    record = json.loads((whole.p.results / "record.json").read_bytes())
    prepared = whole.folder / "data" / "prepared"
    assert not [*verify_prepared(whole.p, record)]
    whole.store.export(finished_run().results.texts, prepared)
    assert not [*verify_prepared(whole.p, record)]
    files = sorted(each for each in prepared.iterdir() if each.name != ".mgaa.json")
    assert len(files) > 3
    for path in files:
        mend = flipped(path, 40)
        assert named([*verify_prepared(whole.p, record)]), path
        mend()
    (prepared / "more.jsonl").write_text("{}")
    assert "more.jsonl: was added" in named([*verify_prepared(whole.p, record)])
    shutil.rmtree(whole.folder / "data")


def test_a_data_file_whose_name_has_no_ending_is_looked_at_as_well(whole: Audited, tmp_path: Path) -> None:
    record = json.loads((whole.p.results / "record.json").read_bytes())
    content = (whole.folder / "calibration.jsonl").read_bytes()
    (tmp_path / "corpus").write_bytes(content + b"x")
    record["parameters"]["data.calibration.source"] = str(tmp_path / "corpus")
    record["sources"]["data"]["calibration"] = {"corpus": hashlib.sha256(content).hexdigest()}
    assert "corpus: was altered" in named([*verify_inputs(whole.p, record)])


@pytest.mark.parametrize("key", ["ratios.compression", "backbone.source", "statistics.groups"])
def test_a_changed_parameter_of_a_record_is_found(whole: Audited, key: str) -> None:
    path = whole.store.path_of(whole.run) / "record.json"
    before = path.read_bytes()
    record = json.loads(before)
    record["parameters"][key] = "another"
    path.write_bytes(format_json(record))
    found = audit(whole.p, whole.store, whole.run).disagreements
    path.write_bytes(before)
    assert any(str(whole.run) in each.where for each in found)


def test_a_manifest_that_was_forged_with_its_seal_disagrees_with_its_key(whole: Audited) -> None:
    ratios = finished_run().results.models["mgaa"].ratios
    path = whole.store.path_of(ratios) / "manifest.json"
    before = path.read_bytes()
    manifest = json.loads(before)
    del manifest["seal"]
    manifest["parameters"]["target"]["compression"] = 0.25
    path.write_bytes(format_json({**manifest, "seal": digest(manifest)}))
    found = named(verify_store(whole.store).findings)
    path.write_bytes(before)
    assert f"{ratios} (parameters)" in found


def test_manifests_and_keys_that_are_nested_without_end_are_damaged(whole: Audited) -> None:
    ratios = finished_run().results.models["mgaa"].ratios
    for path in (whole.store.path_of(ratios) / "manifest.json", next((whole.store.path / "keys").glob("*.json"))):
        before = path.read_bytes()
        path.write_bytes(b"[" * 100_000)
        found = named(verify_store(whole.store).findings)
        path.write_bytes(before)
        assert str(path) in found


def test_a_missing_artifact_and_a_missing_manifest_are_told(whole: Audited, tmp_path: Path) -> None:
    copy = Store(Path(shutil.copytree(whole.store.path, tmp_path / "store")))
    spectra = finished_run().results.spectra
    shutil.rmtree(copy.path_of(spectra[0]))
    (copy.path_of(spectra[1]) / "manifest.json").unlink()
    found = verify_store(copy).findings
    assert any(each.where == str(spectra[0]) and each.kind == "unchecked" for each in found)
    assert any(each.where == str(spectra[1]) and "manifest.json is missing" in each.what for each in found)
    nodes = ancestry(copy, [finished_run().results.models["mgaa"].checkpoint])
    assert {each for each, node in nodes.items() if node.problem} == set(spectra)


def test_a_store_that_was_moved_verifies_as_before(whole: Audited, tmp_path: Path) -> None:
    moved = Store(Path(shutil.copytree(whole.store.path, tmp_path / "another name")))
    assert not verify_store(moved).findings


def forge(store: Store, content: bytes, inputs: dict[str, Any]) -> Artifact:
    """An artifact whose manifest says what it likes."""
    name = content_digest("ranks", {"file": hashlib.sha256(content).hexdigest()})
    folder = store.path / "ranks" / name
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {"kind": "ranks", "digest": name, "key": "0", "inputs": inputs, "files": {"file": entry}}
    (folder / "manifest.json").write_bytes(format_json({**manifest, "seal": digest(manifest)}))
    return Artifact("ranks", name)


def test_manifests_that_go_round_in_a_circle_are_an_error_that_names_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    names = [content_digest("ranks", {"file": hashlib.sha256(text).hexdigest()}) for text in (b"a", b"b")]
    one, other = ({"ranks": {"kind": "ranks", "digest": each}} for each in names)
    forge(store, b"a", other)
    artifact = forge(store, b"b", one)
    with pytest.raises(DamagedError, match=r"form a cycle.*->.*->"):
        ancestry(store, [artifact])
    assert "cycle" in named(verify_store(store).findings)


def key_of(folder: Path, who: str) -> tuple[Path, Path]:
    """A new key and the line of allowed signers for it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / who)], check=True)
    (folder / f"{who}.signers").write_text(f"{who}@example.org {(folder / f'{who}.pub').read_text()}")
    return folder / who, folder / f"{who}.signers"


def test_a_signature_says_who_and_covers_every_byte_of_the_record(whole: Audited, tmp_path: Path) -> None:
    (key, signers), (_, others) = key_of(tmp_path, "ada"), key_of(tmp_path, "eve")
    store = Store(Path(shutil.copytree(whole.store.path, tmp_path / "store")))
    assert "is not signed" in named([*verify_signature(store, whole.run, signers)])
    sign(store, whole.run, key)
    assert not [*verify_signature(store, whole.run, signers)]
    assert find_signer(store, whole.run, signers) == "ada@example.org"
    assert "no signature" in named([*verify_signature(store, whole.run, others)])
    assert "is signed" in named([*verify_signature(store, whole.run, None)])
    flipped(store.path_of(whole.run) / "record.json", 1000)
    assert "no signature" in named([*verify_signature(store, whole.run, signers)])


def test_a_run_signs_itself_where_a_key_is_set(tmp_path: Path) -> None:
    key, signers = key_of(tmp_path, "ada")
    run = finished_run()
    p = run.parameters.model_copy(update={"store": run.parameters.store.model_copy(update={"signing_key": str(key)})})
    p._folder = tmp_path / "project"
    shutil.copytree(run.parameters.folder, p.folder)
    store, spent = Store(p.store_path), Span(datetime.now(UTC), 1.0)
    made = keep_record(p, store, "compress", artifacts=run.results.artifacts(), executions=[], spent=spent)
    assert find_signer(store, made, signers) == "ada@example.org"
    assert not [*verify_signature(store, made, signers)]
    with pytest.raises(InputError, match="cannot sign"):
        check_key(str(tmp_path / "nothing"))


def test_what_cannot_sign_is_told(whole: Audited, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    with pytest.raises(InputError, match=r"cannot sign.*expected a private key"):
        sign(whole.store, whole.run, tmp_path / "key")
    with pytest.raises(InputError, match="is no run"):
        sign(whole.store, finished_run().results.backbone, tmp_path / "key")
