"""What made two results differ: every parameter, file, package and device in which their ancestries differ.

Both are walked to the end. Of what a run was given its record tells more than its steps: the parameters as in `params.yaml`. Then
come the artifacts, in the order in which they were made, and the numbers: the first line that differs is the cause, the last the effect.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.lineage import Node, ancestry, name
from tasks.records import METRICS, table
from tasks.run_record import KIND, read_record
from tasks.targets import derivation


@dataclass(frozen=True)
class Difference:
    """Something in which two results differ.

    Attributes:
        aspect: parameter, data, backbone, code, package, device, artifact or metric.
        one, other: the two values; None where there is none.
    """

    aspect: str
    name: str
    one: Any
    other: Any


def difference(store: Store, one: Artifact, other: Artifact) -> list[Difference]:
    """Everything in which two results differ, causes first."""
    first, second = facts(store, one), facts(store, other)
    return [each for aspect in first for each in differences(aspect, first[aspect], second[aspect])]


def differences(aspect: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Difference]:
    """The keys in which two tables differ, in their order."""
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            yield Difference(aspect, key, one.get(key), other.get(key))


def facts(store: Store, root: Artifact) -> dict[str, dict[str, Any]]:
    """Tables by aspect, causes first; keys are alike for alike results."""
    nodes = ancestry(store, [root], derivation(store, root))
    steps = [node for node in nodes.values() if node.artifact.kind != KIND]
    record = read_record(store, root) if root.kind == KIND else None
    sources = {} if record is None else record["sources"]
    return {
        "parameter": given(steps) if record is None else record["parameters"],
        "backbone": sources.get("backbone") or merged(steps, "parameters", "files", task="load_backbone"),
        "data": {
            f"{part}: {file}": value for part, those in sources.get("data", {}).items() for file, value in those.items()
        }
        or merged(steps, "parameters", "content", task="read_texts"),
        "code": merged(steps, "sources"),
        "package": merged(steps, "versions"),
        "device": {"device": ", ".join(sorted({str(node.manifest.get("device")) for node in steps}))},
        "artifact": made(steps)
        if record is None
        else {key: " ".join(those) for key, those in record["artifacts"].items()},
        "metric": measured(store, nodes, record),
    }


def given(steps: list[Node]) -> dict[str, Any]:
    """Parameters of the steps, by task; those that differ between the calls of one task are lists."""
    found: dict[str, list[Any]] = {}
    for node in steps:
        for key, value in node.manifest.get("parameters", {}).items():
            if key not in ("files", "content") and value not in (
                values := found.setdefault(f"{node.manifest['task']}.{key}", [])
            ):
                values.append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


def merged(steps: list[Node], *path: str, task: str | None = None) -> dict[str, Any]:
    """One table of all manifests, put together."""
    found: dict[str, Any] = {}
    for node in steps:
        if task in (None, node.manifest.get("task")):
            table: Any = node.manifest
            for key in path:
                table = (table or {}).get(key)
            found |= table or {}
    return dict(sorted(found.items()))


def made(steps: list[Node]) -> dict[str, str]:
    """Artifacts by task, in the order in which they were made."""
    found: dict[str, list[str]] = {}
    for node in steps:
        found.setdefault(str(node.manifest.get("task", "?")), []).append(name(node.artifact))
    return {task: " ".join(those) for task, those in found.items()}


def measured(store: Store, nodes: Mapping[Artifact, Node], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Perplexities and parameters, by model."""
    stages = (
        record["artifacts"] if record else {"metrics": [name(each) for each in nodes if each.kind == "metrics"][-1:]}
    )
    found: dict[str, Any] = {}
    for stage in (each for each in stages if each.startswith("metrics")):
        for artifact in (Artifact(*each.split("/")) for each in stages[stage]):
            metrics = table(store, artifact, METRICS)
            model = stage.partition(".")[2] or "model"
            found |= {f"{key}/{model}": metrics[key] for key in ("perplexity", "parameters", "bytes") if key in metrics}
    return found
