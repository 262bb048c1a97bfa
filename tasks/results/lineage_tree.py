"""The lineage of a run as people read it: what each step took, the tree from a checkpoint to its sources, and the sources' digests.

All of it comes from manifests (tasks/record/lineage.py). Artifacts that are inputs together, such as the spectra of all blocks, are one
branch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.cache.artifact import Artifact, Store

Lineage = Mapping[str, Mapping[str, Any]]
"""What manifests tell, by `kind/digest`, inputs before what is made from them (`tasks.record.lineage.lineage`)."""


@dataclass(frozen=True)
class Branch:
    """Artifacts that are inputs together.

    Attributes:
        names: theirs.
        task: the step that made them, and the seconds that it took, all together.
        inputs: what they were made from, where this has not been told further up.
        known: what they were made from and was told further up, by kind.
    """

    names: tuple[str, ...]
    task: str
    seconds: float
    inputs: list["Branch"] = field(default_factory=list)
    known: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The kind of the artifacts."""
        return self.names[0].partition("/")[0]


def tree(behind: Lineage, names: Sequence[str]) -> Branch:
    """The branch of `names`, and below it all that it was made from; everything is told once."""
    return _branch(behind, tuple(names), set())


def _branch(behind: Lineage, names: tuple[str, ...], told: set[tuple[str, ...]]) -> Branch:
    told.add(names)
    found = Branch(names, behind[names[0]]["task"], sum(behind[name]["seconds"] for name in names))
    for group in _inputs(behind, names):
        if group in told:
            found.known.append(group)
        else:
            found.inputs.append(_branch(behind, group, told))
    return found


def _inputs(behind: Lineage, names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """What artifacts were made from, by role, each group in the order of the blocks."""
    roles: dict[str, dict[str, None]] = {}
    for name in names:
        for role, given in behind[name]["inputs"].items():
            roles.setdefault(role, {}).update(dict.fromkeys(given))
    yield from dict.fromkeys(tuple(group) for group in roles.values() if group)


def efforts(store: Store, behind: Lineage) -> list[dict[str, Any]]:
    """What every step took: `{task, kind, count, seconds, longest, peak_rss}`, in the order of the run."""
    found: dict[str, dict[str, Any]] = {}
    for name, told in behind.items():
        kind, _, digest = name.partition("/")
        new = {"task": told["task"], "kind": kind, "count": 0, "seconds": 0.0, "longest": 0.0, "peak_rss": 0}
        row, seconds = found.setdefault(told["task"], new), told["seconds"]
        row |= {"count": row["count"] + 1, "seconds": row["seconds"] + seconds}
        row |= {
            "longest": max(row["longest"], seconds),
            "peak_rss": max(row["peak_rss"], store.manifest(Artifact(kind, digest))["peak_rss"]),
        }
    return [*found.values()]


def sources(behind: Lineage) -> list[tuple[str, str, str]]:
    """What no step has made: `(of what, name, sha256 or version)` of every file of the backbone, the texts and the questions."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, told in behind.items():
        kind, given = name.partition("/")[0], told["parameters"]
        files = {"": given.get("files", {}), **given.get("content", {})} if not told["inputs"] else {}
        for section, those in files.items():
            for file, digest in those.items():
                found.setdefault((kind, file, str(digest)), []).append(section)
    return [(f"{kind} {', '.join(those)}".strip(), file, digest) for (kind, file, digest), those in found.items()]


def origins(behind: Lineage) -> list[dict[str, Any]]:
    """Where artifacts were made: `{commit, dirty, device, python, count}`, one for each distinct place."""
    found: dict[tuple[Any, ...], int] = {}
    for told in behind.values():
        place = (told["git"]["commit"], told["git"]["dirty"], told["device"], told["versions"]["python"])
        found[place] = found.get(place, 0) + 1
    return [
        {"commit": commit, "dirty": dirty, "device": device, "python": python, "count": count}
        for (commit, dirty, device, python), count in found.items()
    ]
