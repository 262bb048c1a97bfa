"""Differences between two results: causes, effects, and differences without effect.

Two runs are compared by what each of them used according to its record: parameters, files of the backbone and of the data, code and
packages by step, flags, device. A difference is a cause if it reaches a step that made something else, and has no effect if every
step that it reaches made the same. The effects are the artifacts that differ, in the order in which they were made, and the numbers.

Other artifacts, and runs whose records do not say this, are compared by their ancestries: the manifests written when each artifact was
first made.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tasks.artifacts.files import METRICS, read_table
from tasks.audit.references import derivation
from tasks.cache.artifact import Artifact, Store
from tasks.record.lineage import Node, ancestry, full_name
from tasks.record.run_record import ELSEWHERE, KIND, read_record


@dataclass(frozen=True)
class Difference:
    """One thing in which two results differ.

    Attributes:
        aspect: parameter, data, backbone, code, package, flag, device, artifact or metric.
        one, other: the two values; None if there is none.
        role: cause, effect, or none.
    """

    aspect: str
    name: str
    one: Any
    other: Any
    role: Literal["cause", "effect", "none"]


EFFECTS = ("artifact", "metric")


def compare_results(store: Store, one: Artifact, other: Artifact) -> list[Difference]:
    """List everything in which two results differ: causes, then effects, then differences without effect."""
    first, second = collect_facts(store, one), collect_facts(store, other)
    runs = [read_record(store, each) for each in (one, other) if each.kind == KIND]
    reach = Reach(store, *runs) if len(runs) == 2 and all(record.get("steps") for record in runs) else None
    shared = [aspect for aspect in first if aspect in second]
    differing = [each for aspect in shared for each in differences(aspect, first[aspect], second[aspect], reach)]
    order = ("cause", "effect", "none")
    return sorted(differing, key=lambda each: order.index(each.role))


def differences(
    aspect: str, one: Mapping[str, Any], other: Mapping[str, Any], reach: "Reach | None"
) -> Iterator[Difference]:
    """List the keys in which two tables differ, in their order."""
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            role: Literal["cause", "effect", "none"] = "effect" if aspect in EFFECTS else "cause"
            if role == "cause" and reach is not None and not reach.changes(aspect, key):
                role = "none"
            yield Difference(aspect, key, one.get(key), other.get(key), role)


class Reach:
    """The steps that a difference between two runs reaches: some made the same in both runs, others did not."""

    def __init__(self, store: Store, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
        self.store, self.steps = store, (one["steps"], other["steps"])
        tasks = sorted({*self.steps[0], *self.steps[1]})
        self.changed = [task for task in tasks if self.of(task, "artifacts", 0) != self.of(task, "artifacts", 1)]
        self.parameters = {task: [self.call_parameters(task, side) for side in (0, 1)] for task in self.changed}

    def of(self, task: str, part: str, side: int) -> Any:
        """Part of what a step used in one of the runs; None if that run had no such step."""
        return self.steps[side].get(task, {}).get(part)

    def changes(self, aspect: str, key: str) -> bool:
        """Tell whether a difference reaches a step that made something else."""
        if aspect == "parameter":
            return self.chooses(key)
        if aspect in ("backbone", "data"):
            return any(self.leaves(task, key.rpartition(": ")[2]) for task in self.changed)
        if aspect == "device":
            return any(self.has_same_keys(task) for task in self.changed)
        part = {"code": "sources", "package": "packages", "flag": "flags"}[aspect]
        sides = [[(self.of(task, part, side) or {}).get(key) for side in (0, 1)] for task in self.changed]
        return any(one != other for one, other in sides)

    def chooses(self, key: str) -> bool:
        """Tell whether a parameter of the run reaches a changed step: by its own name, or by deciding which steps there are."""
        section, _, leaf = key.rpartition(".")
        if section.partition(".")[0] in ELSEWHERE:
            return False
        named = any(self.leaves(task, leaf) for task in self.changed)
        return named or any(self.lacks_step(task) for task in self.changed)

    def lacks_step(self, task: str) -> bool:
        """Tell whether one of the runs lacked this step."""
        return any(task not in side for side in self.steps)

    def leaves(self, task: str, leaf: str) -> bool:
        """Tell whether the parameters of a step differ between the two runs in a value of this name."""
        one, other = (sorted(map(str, values_named(given, leaf))) for given in self.parameters[task])
        return one != other

    def call_parameters(self, task: str, side: int) -> list[dict[str, Any]]:
        """Parameters of all calls of a step, from the records of its keys as far as the store still has them."""
        paths = [self.store.key_path(key) for key in self.of(task, "keys", side) or []]
        return [json.loads(path.read_bytes())["stage"]["parameters"] for path in paths if path.is_file()]

    def has_same_keys(self, task: str) -> bool:
        """Tell whether both runs had a step by the same keys: its result then depends on more than the keys hold."""
        return bool(self.of(task, "keys", 0) == self.of(task, "keys", 1))


def values_named(value: Any, leaf: str) -> Iterator[Any]:
    """Find every value of this name in nested tables."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == leaf:
                yield inner
            else:
                yield from values_named(inner, leaf)
    elif isinstance(value, list):
        for inner in value:
            yield from values_named(inner, leaf)


def collect_facts(store: Store, root: Artifact) -> dict[str, dict[str, Any]]:
    """Tables by aspect, causes first; equal results have equal keys."""
    nodes = ancestry(store, [root], derivation(store, root))
    steps = [node for node in nodes.values() if node.artifact.kind != KIND]
    record = read_record(store, root) if root.kind == KIND else None
    sources = {} if record is None else record["sources"]
    own = collect_usage(record) if record is not None and record.get("steps") else None
    devices = sorted({str(node.manifest.get("device")) for node in steps})
    return {
        "parameter": step_parameters(steps) if record is None else record["parameters"],
        "backbone": sources.get("backbone") or merge_manifests(steps, "parameters", "files", task="load_backbone"),
        "data": {
            f"{part}: {file}": value for part, those in sources.get("data", {}).items() for file, value in those.items()
        }
        or merge_manifests(steps, "parameters", "content", task="read_texts"),
        **(
            {"code": merge_manifests(steps, "sources"), "package": merge_manifests(steps, "versions")}
            if own is None
            else own
        ),
        "device": {"device": ", ".join(devices if record is None else [record["device"]])},
        "artifact": artifacts_by_task(steps)
        if record is None
        else {key: " ".join(those) for key, those in record["artifacts"].items()},
        "metric": read_metrics(store, nodes, record),
    }


def step_parameters(steps: list[Node]) -> dict[str, Any]:
    """Parameters of the steps, by task; those that differ between the calls of one task are lists."""
    parameters: dict[str, list[Any]] = {}
    for node in steps:
        for key, value in node.manifest.get("parameters", {}).items():
            if key not in ("files", "content") and value not in (
                values := parameters.setdefault(f"{node.manifest['task']}.{key}", [])
            ):
                values.append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in parameters.items()}


def merge_manifests(steps: list[Node], *path: str, task: str | None = None) -> dict[str, Any]:
    """Merge one table of all manifests."""
    merged: dict[str, Any] = {}
    for node in steps:
        if task in (None, node.manifest.get("task")):
            table: Any = node.manifest
            for key in path:
                table = (table or {}).get(key)
            merged |= table or {}
    return dict(sorted(merged.items()))


def artifacts_by_task(steps: list[Node]) -> dict[str, str]:
    """Artifacts by task, in the order in which they were made."""
    names: dict[str, list[str]] = {}
    for node in steps:
        names.setdefault(str(node.manifest.get("task", "?")), []).append(full_name(node.artifact))
    return {task: " ".join(those) for task, those in names.items()}


def collect_usage(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Everything that the steps of a run used, by aspect."""

    def table(part: str) -> dict[str, Any]:
        return {key: value for step in record["steps"].values() for key, value in step[part].items()}

    return {"code": table("sources"), "package": record["versions"] | table("packages"), "flag": table("flags")}


def read_metrics(store: Store, nodes: Mapping[Artifact, Node], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Perplexities and parameter counts, by model."""
    stages = (
        record["artifacts"]
        if record
        else {"metrics": [full_name(each) for each in nodes if each.kind == "metrics"][-1:]}
    )
    numbers: dict[str, Any] = {}
    for stage in (each for each in stages if each.startswith("metrics")):
        for artifact in (Artifact(*each.split("/")) for each in stages[stage]):
            metrics = read_table(store, artifact, METRICS)
            model = stage.partition(".")[2] or "model"
            numbers |= {
                f"{key}/{model}": metrics[key] for key in ("perplexity", "parameters", "bytes") if key in metrics
            }
    return numbers
