"""Every byte of a store against its manifests and keys.

An artifact is checked as on every use (tasks/cache/manifest.py), and further: its manifest is byte for byte what `seal` writes, its
inputs are there, and its cache key and its manifest agree where both record the same. A key record is byte for byte what `remember` writes.
So a single changed byte is found wherever it is. Nothing but the folder is read: a store that was moved verifies as before.

Reading and hashing release the interpreter lock, so there is a thread per core (sha256: 1.8 GB/s per core where the processor supports it).
"""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.audit.references import artifacts
from tasks.cache.artifact import CLASSES, Artifact, Store, artifact_of_key
from tasks.cache.manifest import MANIFEST, DamagedError, check_folder, digest, format_json
from tasks.record.findings import Finding, compare_values, disagreement, unchecked
from tasks.record.lineage import STAGE, Node, node_with, sort_nodes

UNFINISHED = "unfinished"
"""Folder of what steps have done so far that still run or were cut off."""


@dataclass
class StoreCheck:
    """Result of checking a store."""

    artifacts: int = 0
    keys: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


def verify_store(store: Store) -> StoreCheck:
    """Check every artifact and every key of a store."""
    checked, nodes = StoreCheck(), dict[Artifact, Node]()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        sealed = (artifact for artifact in artifacts(store) if artifact.kind != UNFINISHED)
        for node, size, findings in threads.map(lambda artifact: verify_artifact(store, artifact), sealed):
            nodes[node.artifact] = node
            checked.artifacts, checked.bytes = checked.artifacts + 1, checked.bytes + size
            checked.findings += findings
        keys = sorted((store.path / "keys").glob("*.json"))
        for findings in threads.map(lambda path: [*verify_key(store, path, nodes)], keys):
            checked.keys, checked.findings = checked.keys + 1, checked.findings + findings
    checked.findings += [*missing_inputs(nodes), *quarantined_artifacts(store)]
    try:
        sort_nodes(nodes)
    except DamagedError as damage:
        checked.findings.append(disagreement(store.path, str(damage)))
    return checked


def verify_artifact(store: Store, artifact: Artifact) -> tuple[Node, int, list[Finding]]:
    """Check an artifact; returns its node, its size in bytes and the findings."""
    place = store.path_of(artifact)
    try:
        manifest = check_folder(place, artifact.kind, artifact.digest)
        node = node_with(artifact, manifest)
    except DamagedError as damage:
        return Node(artifact, {}, {}, str(damage)), 0, [disagreement(artifact, str(damage))]
    findings = []
    if (place / MANIFEST).read_bytes() != manifest_bytes(manifest):
        findings.append(
            disagreement(place / MANIFEST, "is not as it was sealed: its whitespace or its order was altered")
        )
    return node, sum(entry["size"] for entry in manifest["files"].values()), findings


def missing_inputs(nodes: Mapping[Artifact, Node]) -> Iterator[Finding]:
    """Report inputs that are not in the store: collected as garbage, or never fetched."""
    for artifact, node in nodes.items():
        for source in node.all_inputs:
            if source not in nodes:
                yield unchecked(source, f"is not in this store; {artifact} was made from it")


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Serialize a manifest as `Store.seal` writes it."""
    return format_json({**manifest, "seal": digest(manifest)})


def verify_key(store: Store, path: Path, nodes: Mapping[Artifact, Node]) -> Iterator[Finding]:
    """Check the record of a cache key."""
    content = path.read_bytes()
    try:
        artifact = artifact_of_key(content, path.stem, str(path))
        stage = json.loads(content)["stage"]
        if content not in (store.record(artifact, stage, name) for name in CLASSES):
            raise DamagedError(f"The key record {path} is not as it was written.")
    except DamagedError as damage:
        yield disagreement(path, str(damage))
        return
    if artifact not in nodes:
        yield unchecked(artifact, f"is not in this store, the key {path.stem[:12]} ({stage['task']}) names it")
        return
    manifest = nodes[artifact].manifest
    if manifest.get("key") == path.stem:  # otherwise another derivation of equal content wrote the manifest
        for name in sorted({*STAGE, "flags"} & stage.keys() & manifest.keys()):
            yield from compare_values(
                f"{artifact} ({name})", manifest[name], stage[name], f"the record of its key {path}"
            )


def quarantined_artifacts(store: Store) -> Iterator[Finding]:
    """Report artifacts that were found damaged earlier."""
    for path in sorted((store.path / "quarantine").glob("*")):
        yield unchecked(path, "was found damaged, and was put here for inspection")
