"""Sharing a store within a team: results travel through DVC's remote, so that a second clone executes only what changed.

DVC carries what is published. The artifacts it was made from, and the keys that name them, lie in the folder `store/` of the same remote,
reached with the address and credentials of DVC's own configuration (tasks/cache/remote.py). A push includes all ancestors: of a checkpoint
down to the tokens, or of a whole run. Its listing, `shared/<artifact>.json`, is written last, so that every listing that can be read is
complete; nothing has to be searched for.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mgaa.errors import InputError, ResourceError, UsageError
from tasks.audit.references import resolve_target
from tasks.cache.artifact import Artifact, DamagedError, Store, artifact_of_key
from tasks.cache.atomic import write_file
from tasks.cache.manifest import RUN, format_json
from tasks.cache.remote import Remote
from tasks.config.parameters import PathSections, checkout_of
from tasks.record.lineage import full_name
from tasks.record.signing import signature
from tasks.upkeep.retention import ancestors
from tasks.upkeep.store_lock import share_store

FOLDER = "store"
"""Folder of the store in the remote."""
LAST = "last"


@dataclass(frozen=True)
class Transfer:
    """Counts of a push or pull: artifacts and keys, and how many of them were new."""

    artifacts: int
    keys: int
    new_artifacts: int
    new_keys: int


def push(params: PathSections, wanted: Sequence[str] = (), remote: str | None = None) -> Transfer:
    """Copy artifacts with all their ancestors, and their keys, to the remote.

    Args:
        wanted: words of tasks/audit/references.py; by default `last`, the run of `results/record.json`.
        remote: by its name in DVC's configuration, by default DVC's default.

    Raises:
        UsageError: there is no such remote.
        InputError: a word names no artifact, or one is damaged.
        ResourceError: the remote cannot be used; what was pushed before is sound, and is not pushed again.
    """
    store_remote, store = team_remote(params, remote), Store(params.store_path, params.store.lock_timeout)
    roots = [resolve_target(params, store, word) for word in wanted or [LAST]]
    with share_store(store.path):
        named = keys_by_artifact(store)
        return total_transfer(push_one(store, store_remote, root, named) for root in roots)


def push_one(store: Store, there: Remote, root: Artifact, named: dict[Artifact, list[str]]) -> Transfer:
    """Push one artifact, its ancestors and their keys, and the listing of all that last."""
    artifacts = sorted(ancestors(store, root), key=full_name)
    for artifact in artifacts:
        store.manifest(artifact)
    keys = [key for artifact in artifacts for key in named.get(artifact, ())]
    before = read_list(there, root) or {"artifacts": [], "keys": []}
    new_artifacts = sum(there.push(store.path_of(each), each.kind, each.digest) for each in artifacts)
    new_keys = [key for key in keys if key not in before["keys"]]
    for key in new_keys:
        there.write(f"keys/{key}.json", store.key_path(key).read_bytes())
    for run in (each for each in artifacts if signature(store, each).is_file()):
        there.write(f"signatures/{run.digest}.sig", signature(store, run).read_bytes())
    if new_keys or not before["artifacts"]:
        names = sorted({*before["artifacts"], *map(full_name, artifacts)})
        there.write(list_of(root), format_json({"artifacts": names, "keys": sorted({*before["keys"], *keys})}))
    return Transfer(len(artifacts), len(keys), new_artifacts, len(new_keys))


def pull(params: PathSections, wanted: Sequence[str] = (), remote: str | None = None) -> Transfer:
    """Copy artifacts with all their ancestors, and their keys, from the remote; each is verified before it is put in place.

    Args:
        wanted: the words of `push`, but `kind/<digest>` in full; by default `last` (`dvc pull` brings `results/record.json`).
        remote: by its name in DVC's configuration, by default DVC's default.

    Raises:
        UsageError: there is no such remote.
        InputError: nobody has pushed the artifact, or it is damaged there.
        ResourceError: the remote cannot be used, or the disk is full.
    """
    store_remote = team_remote(params, remote)
    store = Store(params.store_path, params.store.lock_timeout, store_remote)
    roots = [full_artifact(word) or resolve_target(params, store, word) for word in wanted or [LAST]]
    with share_store(store.path):
        return total_transfer(pull_one(store, store_remote, root) for root in roots)


def pull_one(store: Store, there: Remote, root: Artifact) -> Transfer:
    """Pull everything that the listing of one artifact names."""
    names = read_list(there, root)
    if names is None:
        raise InputError(
            f"{root} is not in {there.url_of('')}: expected an artifact that was pushed: its owner runs `python -m flows.store push`."
        )
    artifacts = [Artifact(*each.split("/")) for each in names["artifacts"]]
    absent = [artifact for artifact in artifacts if not store.path_of(artifact).exists()]
    for artifact in artifacts:
        store.verify(artifact)
    keys = [key for key in names["keys"] if not store.key_path(key).exists()]
    for key in keys:
        store.recall(key)
    for run in (each for each in artifacts if each.kind == RUN and not signature(store, each).is_file()):
        if (signed := there.read(f"signatures/{run.digest}.sig")) is not None:
            write_file(signature(store, run), signed)
    return Transfer(len(artifacts), len(names["keys"]), len(absent), len(keys))


def total_transfer(transfers: Iterable[Transfer]) -> Transfer:
    """Sum of several transfers."""
    columns = zip(*((each.artifacts, each.keys, each.new_artifacts, each.new_keys) for each in transfers), strict=True)
    return Transfer(*(sum(column) for column in columns))


def list_of(root: Artifact) -> str:
    """Path in the remote of the listing of what was pushed with an artifact."""
    return f"shared/{root.kind}-{root.digest}.json"


def read_list(there: Remote, root: Artifact) -> dict[str, list[str]] | None:
    """Read the listing of what was pushed with an artifact; None if it was not pushed."""
    content = there.read(list_of(root))
    if content is None:
        return None
    try:
        listing = json.loads(content)
        artifacts, keys = [Artifact(*each.split("/")) for each in listing["artifacts"]], [*listing["keys"]]
        if wrong := next((key for key in keys if not re.fullmatch("[0-9a-f]{64}", key)), None):
            raise ValueError(f"{wrong!r} is no key")  # it would be a path
        return {"artifacts": [*map(full_name, artifacts)], "keys": keys}
    except (DamagedError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(
            f"{there.url_of(list_of(root))} is not readable ({error!r}): expected the list of a push; remove it and push again."
        ) from error


def full_artifact(word: str) -> Artifact | None:
    """Artifact of a complete `kind/<digest>`, in the store or not; None for any other word."""
    return Artifact(*word.split("/")) if re.fullmatch("[a-z][a-z_]*/[0-9a-f]{64}", word) else None


def keys_by_artifact(store: Store) -> dict[Artifact, list[str]]:
    """Keys of a store by the artifact that they name; damaged ones are left out."""
    keys: dict[Artifact, list[str]] = {}
    for path in sorted((store.path / "keys").glob("*.json")):
        try:
            artifact = artifact_of_key(path.read_bytes(), path.stem, str(path))
        except DamagedError:
            continue
        keys.setdefault(artifact, []).append(path.stem)
    return keys


def team_remote(params: PathSections, remote: str | None) -> Remote:
    """Open the folder `store/` of a DVC remote, on the file system that DVC has configured for it.

    Raises:
        UsageError: there is no such remote, or a package for it is missing.
        ResourceError: it cannot be reached.
    """
    from dvc.config import Config, ConfigError
    from dvc.fs import get_cloud_fs
    from fsspec import filesystem

    folder = checkout_of(params.folder)
    name = "no remote"
    try:
        config = Config(str(folder / ".dvc")) if (folder / ".dvc").is_dir() else {"core": {}}
        name = remote or config["core"].get("remote")
        if name is None:
            raise ConfigError("no default is set")
        kind, options, path = get_cloud_fs(config, name=name)
        system = kind(**options)
        plain = (
            filesystem("file") if kind.protocol == "local" else system.fs
        )  # DVC's own keeps a file that it could not write completely
        url = str(system.unstrip_protocol(path))
        return Remote(f"{url}/{FOLDER}", f"The remote {name} of DVC", (plain, f"{path}/{FOLDER}"))
    except ConfigError as error:
        raise UsageError(
            f"DVC has no remote {remote or 'by default'} for {folder} ({' '.join(str(error).split())}). Expected one: "
            "dvc remote add --default team <folder or URL>."
        ) from error
    except ImportError as error:
        raise UsageError(
            f"The remote {name} of DVC needs a package that is not installed ({error}): pip install 'mgaa[s3]' for S3, 'mgaa[ssh]' for "
            "SSH, and the package that DVC names for any other."
        ) from error
    except Exception as error:  # each client has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ResourceError(
            f"The remote {name} of DVC cannot be opened ({reason}): check its URL, the network and the credentials "
            "(`dvc remote list`, .dvc/config.local)."
        ) from error
