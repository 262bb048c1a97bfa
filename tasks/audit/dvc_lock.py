"""Reader of `dvc.lock`: the stages of a sound file, or one error message."""

from typing import Any

import yaml

from tasks.cache.manifest import DamagedError

LOCK = "dvc.lock"


def read_stages(content: bytes, where: str) -> dict[str, Any]:
    """Read the stages of a lock file, checked against DVC's own schema.

    Args:
        where: name of the file in the message.

    Raises:
        DamagedError: it is not what DVC writes, for example a file with conflict markers.
    """
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        values = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
        stages: dict[str, Any] = COMPILED_LOCKFILE_SCHEMA(values).get("stages", {})
        paths = [out["path"] for stage in stages.values() for out in (*stage.get("outs", []), *stage.get("deps", []))]
    except (yaml.YAMLError, Invalid, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(
            f"{where} cannot be read ({' '.join(str(error).split())}), expected what DVC wrote: resolve it, or restore it with "
            f"`git checkout -- {LOCK}`."
        ) from error
    if escaping := next((path for path in paths if ".." in path.split("/")), None):
        raise DamagedError(f"{where} names {escaping!r}, expected paths below the project: restore it from git.")
    return stages
