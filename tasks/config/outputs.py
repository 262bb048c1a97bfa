"""What a flow will write, checked before it computes anything: nothing that is read or that somebody else wrote may be in the way.

The writers check again what is theirs (tasks/cache/atomic.py); here the message names the parameter, and hours are not lost.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgaa.checkpoints.output_folder import settled
from mgaa.checkpoints.ownership import check_files, check_folder, relation
from mgaa.errors import UsageError
from tasks.cache.earlier import earlier
from tasks.config.parameters import Parameters, checkout

FILES = ("ranks.profile", "ranks.path", "ratios.path", "evaluation.tasks_folder")
"""Parameters that name what is read, beside every `source`; `search.history` is read at the start, and may be what a search replaces."""

CLOSED = ("the store", "the repository", "DVC's folder")
"""In which no output may lie either."""


@dataclass(frozen=True)
class Output:
    """A folder that is replaced as a whole, or in which the files `names` take their places among others.

    Attributes:
        key: the parameter that says where, or what the output is called.
    """

    key: str
    folder: Path
    names: Sequence[str] | None = None

    @property
    def paths(self) -> list[Path]:
        """What is replaced."""
        return [self.folder] if self.names is None else [self.folder / name for name in self.names]


def check_outputs(p: Parameters, *outputs: Output) -> None:
    """Refuse outputs that would replace, hold or lie in what is read, each other, or what is not ours.

    Raises:
        UsageError: as said.
        ResourceError: a folder cannot be written.
    """
    for output in (Output("store.path", p.store_path, ()), *outputs):
        for what, read in reads(p).items():
            refuse(output, what, read, inside=True)
    for output in outputs:
        for what, kept in keeps(p).items():
            refuse(output, what, kept, inside=what in CLOSED)
        for other in outputs:
            if other is not output and output.names is None:
                refuse(output, other.key, other.folder, inside=other.names is None)
    for output in outputs:
        place = settled(output.folder)
        try:
            check_folder(place, earlier) if output.names is None else check_files(place, output.names, earlier)
        except UsageError as error:
            raise UsageError(f"{output.key}: {error}") from None


def refuse(output: Output, what: str, other: Path, *, inside: bool) -> None:
    """Raise UsageError for an output that is or holds `other`; where told so, also for one inside of it."""
    if output.names is None:
        found, wrong = {relation(output.folder, other)}, ["is", "holds", *["lies in"] * inside]
    else:
        found, wrong = {relation(path, other) for path in output.paths} - {"lies in"}, ["is", "lies in"]
        found |= {relation(output.folder, other)} if inside else set()
    for how in wrong:
        if how in found:
            raise UsageError(
                f"{output.key} would be written to {output.folder}, which {how} {what} ({other}): set it to a folder apart from "
                "everything that is read or kept."
            )


def reads(p: Parameters) -> dict[str, Path]:
    """Every file and folder of this machine that parameters name as a source, and the file of the parameters."""
    flat = p.flat()
    named = {**dict(sources(p.model_dump(by_alias=True))), **{key: flat.get(key) for key in FILES}}
    paths = {key: Path(value).expanduser() for key, value in named.items() if isinstance(value, str)}
    return {"the file of the parameters": p.file, **{key: path for key, path in paths.items() if path.exists()}}


def sources(values: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Whatever is called `source`, by its dotted key."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        if key == "source":
            yield f"{above}{key}", value
        else:
            yield from sources(value, f"{above}{key}.")


def keeps(p: Parameters) -> dict[str, Path]:
    """What the project lives in."""
    place = checkout(p.folder)
    database = (
        {"the tracking database": Path(p.tracking_uri.partition("///")[2])} if "sqlite:///" in p.tracking_uri else {}
    )
    return {
        "the store": p.store_path,
        "the project": p.folder,
        "the working folder": Path.cwd(),
        "the home folder": Path.home(),
        "the repository": place / ".git",
        "DVC's folder": p.folder / ".dvc",
        **database,
    }
