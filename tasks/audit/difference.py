"""What made two results differ: causes, effects, and what differs without effect.

Two runs are compared by what each of them used, as their records tell it: parameters, files of the backbone and of the data, code and
packages by step, flags, device. What differs is a cause where it reaches a step that made something else, and without effect where every
step that it reaches made the same. The artifacts that differ, in the order in which they were made, and the numbers are the effects.

Other artifacts, and runs whose record does not tell this, are compared by their ancestries, the manifests of whoever made each of them
first.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tasks.artifacts.files import METRICS, table
from tasks.audit.references import derivation
from tasks.cache.artifact import Artifact, Store
from tasks.record.lineage import Node, ancestry, name
from tasks.record.run_record import ELSEWHERE, KIND, read_record


@dataclass(frozen=True)
class Difference:
    """Something in which two results differ.

    Attributes:
        aspect: parameter, data, backbone, code, package, flag, device, artifact or metric.
        one, other: the two values; None where there is none.
        role: cause, effect, or none.
    """

    aspect: str
    name: str
    one: Any
    other: Any
    role: Literal["cause", "effect", "none"]


EFFECTS = ("artifact", "metric")


def difference(store: Store, one: Artifact, other: Artifact) -> list[Difference]:
    """Everything in which two results differ: causes, then effects, then what differs without effect."""
    first, second = facts(store, one), facts(store, other)
    runs = [read_record(store, each) for each in (one, other) if each.kind == KIND]
    reach = Reach(store, *runs) if len(runs) == 2 and all(record.get("steps") for record in runs) else None
    shared = [aspect for aspect in first if aspect in second]
    found = [each for aspect in shared for each in differences(aspect, first[aspect], second[aspect], reach)]
    order = ("cause", "effect", "none")
    return sorted(found, key=lambda each: order.index(each.role))


def differences(
    aspect: str, one: Mapping[str, Any], other: Mapping[str, Any], reach: "Reach | None"
) -> Iterator[Difference]:
    """The keys in which two tables differ, in their order."""
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            role: Literal["cause", "effect", "none"] = "effect" if aspect in EFFECTS else "cause"
            if role == "cause" and reach is not None and not reach.changes(aspect, key):
                role = "none"
            yield Difference(aspect, key, one.get(key), other.get(key), role)


class Reach:
    """Where a difference between two runs arrives: at steps that made the same, or at one that did not."""

    def __init__(self, store: Store, one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
        self.store, self.steps = store, (one["steps"], other["steps"])
        tasks = sorted({*self.steps[0], *self.steps[1]})
        self.changed = [task for task in tasks if self.of(task, "artifacts", 0) != self.of(task, "artifacts", 1)]
        self.parameters = {task: [self.given(task, side) for side in (0, 1)] for task in self.changed}

    def of(self, task: str, part: str, side: int) -> Any:
        """A part of what a step used in one of the runs; None where it had no such step."""
        return self.steps[side].get(task, {}).get(part)

    def changes(self, aspect: str, key: str) -> bool:
        """Tell whether a difference reaches a step that made something else."""
        if aspect == "parameter":
            return self.chooses(key)
        if aspect in ("backbone", "data"):
            return any(self.leaves(task, key.rpartition(": ")[2]) for task in self.changed)
        if aspect == "device":
            return any(self.alike(task) for task in self.changed)
        part = {"code": "sources", "package": "packages", "flag": "flags"}[aspect]
        sides = [[(self.of(task, part, side) or {}).get(key) for side in (0, 1)] for task in self.changed]
        return any(one != other for one, other in sides)

    def chooses(self, key: str) -> bool:
        """Tell whether a parameter of the run reaches a changed step: by its own name, or by which steps there are."""
        section, _, leaf = key.rpartition(".")
        if section.partition(".")[0] in ELSEWHERE:
            return False
        named = any(self.leaves(task, leaf) for task in self.changed)
        return named or any(self.absent(task) for task in self.changed)

    def absent(self, task: str) -> bool:
        """Tell whether one of the runs had no such step."""
        return any(task not in side for side in self.steps)

    def leaves(self, task: str, leaf: str) -> bool:
        """Tell whether a value of this name differs between the parameters of a step in the two runs."""
        one, other = (sorted(map(str, named(given, leaf))) for given in self.parameters[task])
        return one != other

    def given(self, task: str, side: int) -> list[dict[str, Any]]:
        """The parameters of the calls of a step, by the records of its keys, as far as the store still has them."""
        paths = [self.store.key_path(key) for key in self.of(task, "keys", side) or []]
        return [json.loads(path.read_bytes())["stage"]["parameters"] for path in paths if path.is_file()]

    def alike(self, task: str) -> bool:
        """Tell whether both runs had a step by the same keys: what it made then depends on more than they hold."""
        return bool(self.of(task, "keys", 0) == self.of(task, "keys", 1))


def named(value: Any, leaf: str) -> Iterator[Any]:
    """Every value of this name in nested ones."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == leaf:
                yield inner
            else:
                yield from named(inner, leaf)
    elif isinstance(value, list):
        for inner in value:
            yield from named(inner, leaf)


def facts(store: Store, root: Artifact) -> dict[str, dict[str, Any]]:
    """Tables by aspect, causes first; keys are alike for alike results."""
    nodes = ancestry(store, [root], derivation(store, root))
    steps = [node for node in nodes.values() if node.artifact.kind != KIND]
    record = read_record(store, root) if root.kind == KIND else None
    sources = {} if record is None else record["sources"]
    own = used(record) if record is not None and record.get("steps") else None
    devices = sorted({str(node.manifest.get("device")) for node in steps})
    return {
        "parameter": given(steps) if record is None else record["parameters"],
        "backbone": sources.get("backbone") or merged(steps, "parameters", "files", task="load_backbone"),
        "data": {
            f"{part}: {file}": value for part, those in sources.get("data", {}).items() for file, value in those.items()
        }
        or merged(steps, "parameters", "content", task="read_texts"),
        **({"code": merged(steps, "sources"), "package": merged(steps, "versions")} if own is None else own),
        "device": {"device": ", ".join(devices if record is None else [record["device"]])},
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


def used(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What all steps of a run used, by aspect."""

    def table(part: str) -> dict[str, Any]:
        return {key: value for step in record["steps"].values() for key, value in step[part].items()}

    return {"code": table("sources"), "package": record["versions"] | table("packages"), "flag": table("flags")}


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
