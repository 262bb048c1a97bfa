"""Lineage of a result: walked offline through the manifests, plus the facts of the run that are in none of them.

A manifest names its inputs by digest, so a checkpoint leads to ranks, ratios, spectra, statistics, tokens, texts and backbone,
with the code, the parameters and the commit of each. Nothing else is consulted: a copy of the store has the same lineage.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from tasks.cache import environment
from tasks.cache.artifact import Artifact, Store, artifact_of_key
from tasks.cache.manifest import DamagedError, read_manifest
from tasks.cache.source import code_digest

DESCRIBED = ("task", "inputs", "parameters", "code", "git", "versions", "device", "start", "end", "seconds")
STAGE = ("task", "inputs", "parameters", "code")
"""Fields that a cache key and a manifest share."""
DVC = {"dvc.stage": "DVC_STAGE", "dvc.experiment": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}


@dataclass(frozen=True)
class Node:
    """An artifact with the content of its manifest.

    Attributes:
        manifest: sealed, as it was read; empty if it is missing or damaged.
        inputs: what it was made from, by role.
        problem: error of the manifest, if there is one.
    """

    artifact: Artifact
    manifest: dict[str, Any]
    inputs: dict[str, list[Artifact]]
    problem: str | None = None

    @property
    def all_inputs(self) -> list[Artifact]:
        """Inputs of all roles."""
        return [each for those in self.inputs.values() for each in those]


def node_of(store: Store, artifact: Artifact, key: str | None = None) -> Node:
    """Node of an artifact, from its manifest, which is checked against its seal, and from the record of the cache `key` that led to it.

    Equal content is stored once, under the manifest of the step that made it first; the key names the inputs from which another run
    obtained it.
    """
    try:
        manifest = read_manifest(store.path_of(artifact))
        if (manifest["kind"], manifest["digest"]) != (artifact.kind, artifact.digest):
            raise DamagedError(
                f"{store.path_of(artifact)} holds the manifest of {manifest['kind']}/{manifest['digest']}."
            )
        if key not in (None, manifest["key"]) and (path := store.key_path(str(key))).is_file():
            content = path.read_bytes()
            artifact_of_key(content, str(key), str(path))
            manifest |= {field: json.loads(content)["stage"][field] for field in STAGE}
        return node_with(artifact, manifest)
    except DamagedError as damage:
        return Node(artifact, {}, {}, str(damage))


def node_with(artifact: Artifact, manifest: dict[str, Any]) -> Node:
    """Node of an artifact with a given manifest."""
    try:
        return Node(artifact, manifest, {role: [*_named(value)] for role, value in manifest["inputs"].items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"The manifest of {artifact} names no inputs ({error!r}).") from error


def ancestry(
    store: Store, roots: Iterable[Artifact], keys: Mapping[Artifact, str] | None = None
) -> dict[Artifact, Node]:
    """The roots and all their ancestors, inputs before what is made from them; a missing artifact is a node with a `problem`.

    Args:
        keys: cache keys by which a run obtained them; by default the key in each manifest.

    Raises:
        DamagedError: an artifact is its own ancestor. A digest is computed from the content, so only a forged manifest can say so.
    """
    nodes: dict[Artifact, Node] = {}
    waiting = [*roots]
    while waiting:
        artifact = waiting.pop()
        if artifact not in nodes:
            nodes[artifact] = node_of(store, artifact, (keys or {}).get(artifact))
            waiting += nodes[artifact].all_inputs
    return {artifact: nodes[artifact] for artifact in sort_nodes(nodes)}


def sort_nodes(nodes: Mapping[Artifact, Node]) -> list[Artifact]:
    """Sort artifacts after their inputs; raises `DamagedError` if there is no such order."""
    try:
        return [*TopologicalSorter({artifact: node.all_inputs for artifact, node in nodes.items()}).static_order()]
    except CycleError as error:
        raise DamagedError(
            f"The manifests form a cycle, expected none: {' -> '.join(map(str, error.args[1]))}. One of them was forged: "
            "`python -m flows.lineage verify` reports everything that is wrong; restore the store from its remote."
        ) from error


def describe_lineage(
    store: Store, artifacts: Iterable[Artifact], keys: Mapping[Artifact, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Describe `artifacts` and all their ancestors, by `kind/digest`, inputs before what is made from them.

    Every artifact is checked; raises `DamagedError`.
    """
    nodes = ancestry(store, artifacts, keys)
    for artifact in nodes:
        store.manifest(artifact)
    return {full_name(artifact): describe_node(node) for artifact, node in nodes.items()}


def describe_node(node: Node) -> dict[str, Any]:
    """Describe a node for people and MLflow."""
    facts = {key: node.manifest[key] for key in DESCRIBED if key in node.manifest}
    inputs = {role: [full_name(each) for each in given] for role, given in node.inputs.items()}
    return {**facts, "inputs": inputs} if node.problem is None else {"problem": node.problem}


def _named(value: Any) -> Iterator[Artifact]:
    for given in [value] if isinstance(value, Mapping) else value:
        yield Artifact(given["kind"], given["digest"])


def full_name(artifact: Artifact) -> str:
    """Complete name of an artifact, `kind/digest`."""
    return f"{artifact.kind}/{artifact.digest}"


def run_facts() -> dict[str, str]:
    """Facts that this process knows of its run: commit, whether tracked files differ from it, code, Prefect's run, DVC's stage and
    experiment.
    """
    git = dict(environment.git_state())
    facts = {
        "git.commit": git["commit"],
        "git.dirty": None if git["dirty"] is None else str(git["dirty"]).lower(),
        "code": code_digest(),
        "prefect.flow_run": flow_run(),
        **{tag: os.environ.get(variable) for tag, variable in DVC.items()},
    }
    return {tag: str(value) for tag, value in facts.items() if value}


def flow_run() -> str | None:
    """Id of the current Prefect flow run, if there is one."""
    if "prefect" not in sys.modules:
        return None
    from prefect.runtime import flow_run

    return None if flow_run.id is None else str(flow_run.id)
