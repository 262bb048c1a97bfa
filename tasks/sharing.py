"""The store of a team: results travel through the remote that DVC has, so that a second clone executes only what changed.

DVC carries what is published; beside it, in the folder `store/` of the same remote and with the address and the credentials of DVC's own
configuration, lie the artifacts behind it and the keys that name them (tasks/remote.py). What is pushed is pushed with everything that it
was made from: a checkpoint down to the tokens, or all of a run. The list of it, `shared/<artifact>.json`, is written last, so that whoever
finds a list finds all that it names; nothing has to be listed or searched.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mgaa.errors import InputError, ResourceError, UsageError
from tasks.artifact import Artifact, DamagedError, Store, named_by
from tasks.lineage import lineage
from tasks.parameters import Placed, checkout
from tasks.remote import Remote
from tasks.run_record import KIND, RECORD
from tasks.sealing import content_digest, describe, readable

FOLDER = "store"
"""The store's folder in the remote."""


@dataclass(frozen=True)
class Shared:
    """What travelled: artifacts and keys, and how many were not there before."""

    artifacts: int
    keys: int
    new_artifacts: int
    new_keys: int


def push(p: Placed, wanted: Sequence[str] = (), remote: str | None = None) -> Shared:
    """Copy artifacts with everything behind them, and their keys, to the remote.

    Args:
        wanted: `kind/<beginning of a digest>`; by default the run that `results/record.json` tells of.
        remote: by its name in DVC's configuration, by default DVC's default.

    Raises:
        UsageError: there is no such remote, or a word names no artifact.
        InputError: no run is published, or an artifact is damaged.
        ResourceError: the remote cannot be used; what was pushed before is sound, and is not pushed again.
    """
    there, store = team_remote(p, remote), Store(p.store_path, p.store.lock_timeout)
    roots = [local(store, word) for word in wanted] or [last(p)]
    named = keys_by_artifact(store)
    told = [push_one(store, there, root, named) for root in roots]
    return total(told)


def push_one(store: Store, there: Remote, root: Artifact, named: dict[Artifact, list[str]]) -> Shared:
    """One artifact, what is behind it, the keys, and last the list of all that."""
    behind = [Artifact(*name.split("/")) for name in lineage(store, [root])]  # checked, inputs first
    keys = [key for artifact in behind for key in named.get(artifact, ())]
    before = listed(there, root) or {"artifacts": [], "keys": []}
    new_artifacts = sum(there.push(store.place(each), each.kind, each.digest) for each in behind)
    new_keys = [key for key in keys if key not in before["keys"]]
    for key in new_keys:
        there.write(f"keys/{key}.json", store.key_path(key).read_bytes())
    if new_keys or not before["artifacts"]:
        names = [f"{each.kind}/{each.digest}" for each in behind]
        there.write(list_of(root), readable({"artifacts": names, "keys": sorted({*before["keys"], *keys})}))
    return Shared(len(behind), len(keys), new_artifacts, len(new_keys))


def pull(p: Placed, wanted: Sequence[str] = (), remote: str | None = None) -> Shared:
    """Copy artifacts with everything behind them, and their keys, from the remote, each checked before it gets its place.

    Args:
        wanted: `kind/<digest>` in full; by default the run that `results/record.json` tells of (`dvc pull` brings that file).
        remote: by its name in DVC's configuration, by default DVC's default.

    Raises:
        UsageError: there is no such remote.
        InputError: nobody has pushed the artifact, or it is damaged there.
        ResourceError: the remote cannot be used, or the disk is full.
    """
    there = team_remote(p, remote)
    store = Store(p.store_path, p.store.lock_timeout, there)
    return total([pull_one(store, there, root) for root in [in_full(word) for word in wanted] or [last(p)]])


def pull_one(store: Store, there: Remote, root: Artifact) -> Shared:
    """All that the list of one artifact names."""
    names = listed(there, root)
    if names is None:
        raise InputError(
            f"{root} is not in {there.place('')}: expected something that was pushed; whoever has it runs `python -m flows.store push`."
        )
    artifacts = [Artifact(*name.split("/")) for name in names["artifacts"]]
    absent = [artifact for artifact in artifacts if not store.place(artifact).exists()]
    for artifact in artifacts:
        store.verify(artifact)
    keys = [key for key in names["keys"] if not store.key_path(key).exists()]
    for key in keys:
        store.recall(key)
    return Shared(len(artifacts), len(names["keys"]), len(absent), len(keys))


def total(told: Iterable[Shared]) -> Shared:
    """The sum."""
    columns = zip(*((each.artifacts, each.keys, each.new_artifacts, each.new_keys) for each in told), strict=True)
    return Shared(*(sum(column) for column in columns))


def list_of(root: Artifact) -> str:
    """Where the list of what was pushed with an artifact lies."""
    return f"shared/{root.kind}-{root.digest}.json"


def listed(there: Remote, root: Artifact) -> dict[str, list[str]] | None:
    """What was pushed with an artifact, or None if it was not."""
    content = there.read(list_of(root))
    if content is None:
        return None
    try:
        found = json.loads(content)
        return {"artifacts": [str(each) for each in found["artifacts"]], "keys": [str(each) for each in found["keys"]]}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"{there.place(list_of(root))} is not readable ({error!r}): expected the list of a push; remove it and push again."
        ) from error


def last(p: Placed) -> Artifact:
    """The run that is published in `results/`."""
    path = p.results / RECORD
    if not path.is_file():
        raise InputError(
            f"There is no {path}: expected the record of a run; make it with `python -m flows.compress`, fetch it with `dvc pull`, or "
            "name what you want, such as checkpoint/<digest>."
        )
    return Artifact(KIND, content_digest(KIND, {RECORD: describe(path)["sha256"]}))


def local(store: Store, word: str) -> Artifact:
    """The artifact of this store that `kind/<beginning of a digest>` means."""
    kind, _, start = word.partition("/")
    found = sorted(path.name for path in (store.path / kind).glob(f"{start}*") if len(path.name) == 64) if start else []
    if len(found) != 1:
        raise UsageError(
            f"{word!r} means {len(found)} artifacts of {store.path}: expected kind/<the beginning of one digest>, such as run/1a2b3c."
        )
    return Artifact(kind, found[0])


def in_full(word: str) -> Artifact:
    """The artifact of `kind/<digest>`."""
    try:
        return Artifact(*word.split("/"))
    except (DamagedError, TypeError) as error:
        raise UsageError(f"{word!r} is no artifact: expected kind/<digest of 64 digits>.") from error


def keys_by_artifact(store: Store) -> dict[Artifact, list[str]]:
    """The keys of a store by what they name; a damaged one names nothing."""
    found: dict[Artifact, list[str]] = {}
    for path in sorted((store.path / "keys").glob("*.json")):
        try:
            artifact = named_by(path.read_bytes(), path.stem, str(path))
        except DamagedError:
            continue
        found.setdefault(artifact, []).append(path.stem)
    return found


def team_remote(p: Placed, name: str | None) -> Remote:
    """The folder `store/` of a remote of DVC, on the file system that DVC has configured for it.

    Raises:
        UsageError: there is no such remote, or a package for it is missing.
        ResourceError: it cannot be reached.
    """
    from dvc.config import Config, ConfigError
    from dvc.fs import get_cloud_fs
    from fsspec import filesystem

    folder = checkout(p.folder)
    wanted = "no remote"
    try:
        config = Config(str(folder / ".dvc")) if (folder / ".dvc").is_dir() else {"core": {}}
        wanted = name or config["core"].get("remote")
        if wanted is None:
            raise ConfigError("no default is set")
        kind, options, path = get_cloud_fs(config, name=wanted)
        system = kind(**options)
        plain = (
            filesystem("file") if kind.protocol == "local" else system.fs
        )  # DVC's own leaves what it could not write whole
        url = str(system.unstrip_protocol(path))
        return Remote(f"{url}/{FOLDER}", f"The remote {wanted} of DVC", (plain, f"{path}/{FOLDER}"))
    except ConfigError as error:
        raise UsageError(
            f"DVC has no remote {name or 'by default'} for {folder} ({' '.join(str(error).split())}). Expected one: "
            "dvc remote add --default team <folder or URL>."
        ) from error
    except Exception as error:  # each client has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ResourceError(
            f"The remote {wanted} of DVC cannot be opened ({reason}): check its URL, the network and the credentials "
            "(`dvc remote list`, .dvc/config.local)."
        ) from error
