"""The lineage of a run for readers: effort of each step, the tree from a checkpoint to its sources, and the sources' digests.

All of it comes from manifests (tasks/record/lineage.py). Artifacts that are inputs together, such as the spectra of all blocks, form one
branch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.cache.artifact import Artifact, Store

Lineage = Mapping[str, Mapping[str, Any]]
"""Manifests by `kind/digest`, inputs before what is made from them (`tasks.record.lineage.describe_lineage`)."""


@dataclass(frozen=True)
class Branch:
    """Artifacts that are inputs together.

    Attributes:
        names: of the artifacts.
        task: the step that made them; `seconds` is its total time.
        inputs: what they were made from, unless it is shown further up.
        known: inputs that are shown further up, by kind.
    """

    names: tuple[str, ...]
    task: str
    seconds: float
    inputs: list["Branch"] = field(default_factory=list)
    known: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Kind of the artifacts."""
        return self.names[0].partition("/")[0]


def build_tree(lineage: Lineage, names: Sequence[str]) -> Branch:
    """Build the branch of `names` and everything it was made from; each group is expanded once."""
    return _branch(lineage, tuple(names), set())


def _branch(lineage: Lineage, names: tuple[str, ...], shown: set[tuple[str, ...]]) -> Branch:
    shown.add(names)
    node = Branch(names, lineage[names[0]]["task"], sum(lineage[name]["seconds"] for name in names))
    for group in _inputs(lineage, names):
        if group in shown:
            node.known.append(group)
        else:
            node.inputs.append(_branch(lineage, group, shown))
    return node


def _inputs(lineage: Lineage, names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Inputs of artifacts by role, each group in the order of the blocks."""
    roles: dict[str, dict[str, None]] = {}
    for name in names:
        for role, given in lineage[name]["inputs"].items():
            roles.setdefault(role, {}).update(dict.fromkeys(given))
    yield from dict.fromkeys(tuple(group) for group in roles.values() if group)


def efforts(store: Store, lineage: Lineage) -> list[dict[str, Any]]:
    """Effort of every step: `{task, kind, count, seconds, longest, peak_rss}`, in the order of the run."""
    rows: dict[str, dict[str, Any]] = {}
    for name, manifest in lineage.items():
        kind, _, digest = name.partition("/")
        new = {"task": manifest["task"], "kind": kind, "count": 0, "seconds": 0.0, "longest": 0.0, "peak_rss": 0}
        row, seconds = rows.setdefault(manifest["task"], new), manifest["seconds"]
        row |= {"count": row["count"] + 1, "seconds": row["seconds"] + seconds}
        row |= {
            "longest": max(row["longest"], seconds),
            "peak_rss": max(row["peak_rss"], store.manifest(Artifact(kind, digest))["peak_rss"]),
        }
    return [*rows.values()]


def sources(lineage: Lineage) -> list[tuple[str, str, str]]:
    """Inputs that no step made: `(of what, name, sha256 or version)` of every file of the backbone, the texts and the questions."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, manifest in lineage.items():
        kind, given = name.partition("/")[0], manifest["parameters"]
        files = {"": given.get("files", {}), **given.get("content", {})} if not manifest["inputs"] else {}
        for section, those in files.items():
            for file, digest in those.items():
                found.setdefault((kind, file, str(digest)), []).append(section)
    return [(f"{kind} {', '.join(those)}".strip(), file, digest) for (kind, file, digest), those in found.items()]


def origins(lineage: Lineage) -> list[dict[str, Any]]:
    """Origins of the artifacts: `{commit, dirty, device, python, count}`, one for each distinct origin."""
    counts: dict[tuple[Any, ...], int] = {}
    for manifest in lineage.values():
        place = (
            manifest["git"]["commit"],
            manifest["git"]["dirty"],
            manifest["device"],
            manifest["versions"]["python"],
        )
        counts[place] = counts.get(place, 0) + 1
    return [
        {"commit": commit, "dirty": dirty, "device": device, "python": python, "count": count}
        for (commit, dirty, device, python), count in counts.items()
    ]
