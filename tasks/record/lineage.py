"""Where a result comes from: walked offline from the manifests, and the facts of the run that are in none of them.

A manifest names its inputs by digest, so from a checkpoint one reaches ranks, ratios, spectra, statistics, tokens, texts and backbone,
with the code, the parameters and the commit of each. Nothing is looked up anywhere else: a copy of the store tells the same.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from tasks.cache import environment
from tasks.cache.artifact import Artifact, Store, named_by
from tasks.cache.manifest import DamagedError, read_manifest
from tasks.cache.source import code_digest

TOLD = ("task", "inputs", "parameters", "code", "git", "versions", "device", "start", "end", "seconds")
STAGE = ("task", "inputs", "parameters", "code")
"""What a stage key and a manifest both tell."""
DVC = {"dvc.stage": "DVC_STAGE", "dvc.experiment": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}


@dataclass(frozen=True)
class Node:
    """An artifact with what its manifest tells.

    Attributes:
        manifest: sealed, as it was read; empty where it is missing or damaged.
        inputs: what it was made from, by role.
        problem: what is wrong with the manifest, if anything is.
    """

    artifact: Artifact
    manifest: dict[str, Any]
    inputs: dict[str, list[Artifact]]
    problem: str | None = None

    @property
    def behind(self) -> list[Artifact]:
        """All inputs."""
        return [each for those in self.inputs.values() for each in those]


def node_of(store: Store, artifact: Artifact, key: str | None = None) -> Node:
    """The node of an artifact by its manifest, which is checked against its seal, and by the record of a stage `key` that gave it.

    Equal content is stored once, under the manifest of whoever made it first; the key says from what another run had it.
    """
    try:
        manifest = read_manifest(store.place(artifact))
        if (manifest["kind"], manifest["digest"]) != (artifact.kind, artifact.digest):
            raise DamagedError(
                f"{store.place(artifact)} holds the manifest of {manifest['kind']}/{manifest['digest']}."
            )
        if key not in (None, manifest["key"]) and (path := store.key_path(str(key))).is_file():
            content = path.read_bytes()
            named_by(content, str(key), str(path))
            manifest |= {field: json.loads(content)["stage"][field] for field in STAGE}
        return node_with(artifact, manifest)
    except DamagedError as damage:
        return Node(artifact, {}, {}, str(damage))


def node_with(artifact: Artifact, manifest: dict[str, Any]) -> Node:
    """The node of an artifact by what its manifest says."""
    try:
        return Node(artifact, manifest, {role: [*_named(value)] for role, value in manifest["inputs"].items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"The manifest of {artifact} names no inputs ({error!r}).") from error


def ancestry(
    store: Store, roots: Iterable[Artifact], keys: Mapping[Artifact, str] | None = None
) -> dict[Artifact, Node]:
    """The roots and everything behind them, inputs before what is made from them; what is missing is a node with a `problem`.

    Args:
        keys: the stage keys under which a run had them; by default each is what its manifest says.

    Raises:
        DamagedError: an artifact that would be its own ancestor. A digest is made of content, so only a forged manifest says so.
    """
    nodes: dict[Artifact, Node] = {}
    waiting = [*roots]
    while waiting:
        artifact = waiting.pop()
        if artifact not in nodes:
            nodes[artifact] = node_of(store, artifact, (keys or {}).get(artifact))
            waiting += nodes[artifact].behind
    return {artifact: nodes[artifact] for artifact in in_order(nodes)}


def in_order(nodes: Mapping[Artifact, Node]) -> list[Artifact]:
    """Artifacts after all that they were made from; raises `DamagedError` where there is no such order."""
    try:
        return [*TopologicalSorter({artifact: node.behind for artifact, node in nodes.items()}).static_order()]
    except CycleError as error:
        raise DamagedError(
            f"The manifests go round in a circle, expected none: {' -> '.join(map(str, error.args[1]))}. One of them was forged: "
            "`python -m flows.lineage verify` tells what else is wrong; restore the store from its remote."
        ) from error


def lineage(
    store: Store, artifacts: Iterable[Artifact], keys: Mapping[Artifact, str] | None = None
) -> dict[str, dict[str, Any]]:
    """What is known of `artifacts` and of everything behind them, by `kind/digest`, inputs before what is made from them.

    Every artifact is checked; raises `DamagedError`.
    """
    found = ancestry(store, artifacts, keys)
    for artifact in found:
        store.manifest(artifact)
    return {name(artifact): told(node) for artifact, node in found.items()}


def told(node: Node) -> dict[str, Any]:
    """A node as people and MLflow read it."""
    facts = {key: node.manifest[key] for key in TOLD if key in node.manifest}
    inputs = {role: [name(each) for each in given] for role, given in node.inputs.items()}
    return {**facts, "inputs": inputs} if node.problem is None else {"problem": node.problem}


def _named(value: Any) -> Iterator[Artifact]:
    for given in [value] if isinstance(value, Mapping) else value:
        yield Artifact(given["kind"], given["digest"])


def name(artifact: Artifact) -> str:
    """An artifact in full."""
    return f"{artifact.kind}/{artifact.digest}"


def run_facts() -> dict[str, str]:
    """What this process knows of its run: commit, whether tracked files differ from it, code, Prefect's run, DVC's stage and experiment."""
    git = dict(environment.git())
    facts = {
        "git.commit": git["commit"],
        "git.dirty": None if git["dirty"] is None else str(git["dirty"]).lower(),
        "code": code_digest(),
        "prefect.flow_run": flow_run(),
        **{tag: os.environ.get(variable) for tag, variable in DVC.items()},
    }
    return {tag: str(value) for tag, value in facts.items() if value}


def flow_run() -> str | None:
    """The id of the Prefect flow run that this is called in, if there is one."""
    if "prefect" not in sys.modules:
        return None
    from prefect.runtime import flow_run

    return None if flow_run.id is None else str(flow_run.id)
