"""Outputs of a flow, checked before it computes anything: they must not overwrite inputs or files that are not ours.

The writers check again (tasks/cache/atomic.py); the check here names the parameter and comes before hours of work.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgaa.checkpoints.output_folder import resolve_target
from mgaa.checkpoints.ownership import check_files, check_folder, relation
from mgaa.errors import UsageError
from tasks.cache.earlier import earlier_outputs
from tasks.config.parameters import Parameters, checkout_of

FILES = ("ranks.profile", "ranks.path", "ratios.path", "evaluation.tasks_folder")
"""Parameters that name inputs, besides every `source`; `search.history` is read at the start, and a search may replace it."""

CLOSED = ("the store", "the repository", "DVC's folder")
"""Places that must not contain an output either."""


@dataclass(frozen=True)
class Output:
    """A folder that is replaced as a whole, or the files `names` in it, next to others.

    Attributes:
        key: the parameter that names the place, or a name for the output.
    """

    key: str
    folder: Path
    names: Sequence[str] | None = None

    @property
    def paths(self) -> list[Path]:
        """The paths that are replaced."""
        return [self.folder] if self.names is None else [self.folder / name for name in self.names]


def check_outputs(params: Parameters, *outputs: Output) -> None:
    """Refuse outputs that would replace, contain or lie in inputs, other outputs, or files that are not ours.

    Raises:
        UsageError: an output is in the way of something.
        ResourceError: a folder cannot be written.
    """
    for output in (Output("store.path", params.store_path, ()), *outputs):
        for what, read in input_paths(params).items():
            refuse_overlap(output, what, read, inside=True)
    for output in outputs:
        for what, kept in project_paths(params).items():
            refuse_overlap(output, what, kept, inside=what in CLOSED)
        for other in outputs:
            if other is not output and output.names is None:
                refuse_overlap(output, other.key, other.folder, inside=other.names is None)
    for output in outputs:
        place = resolve_target(output.folder)
        try:
            check_folder(place, earlier_outputs) if output.names is None else check_files(
                place, output.names, earlier_outputs
            )
        except UsageError as error:
            raise UsageError(f"{output.key}: {error}") from None


def refuse_overlap(output: Output, what: str, other: Path, *, inside: bool) -> None:
    """Raise UsageError for an output that is or contains `other`; with `inside` also for one that lies in it."""
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


def input_paths(params: Parameters) -> dict[str, Path]:
    """Every existing file and folder that parameters name as an input, and the file of the parameters."""
    flat = params.flat()
    named = {**dict(find_sources(params.model_dump(by_alias=True))), **{key: flat.get(key) for key in FILES}}
    paths = {key: Path(value).expanduser() for key, value in named.items() if isinstance(value, str)}
    return {"the file of the parameters": params.file, **{key: path for key, path in paths.items() if path.exists()}}


def find_sources(values: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every `source`, by its dotted key."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        if key == "source":
            yield f"{above}{key}", value
        else:
            yield from find_sources(value, f"{above}{key}.")


def project_paths(params: Parameters) -> dict[str, Path]:
    """The places that the project needs."""
    place = checkout_of(params.folder)
    database = (
        {"the tracking database": Path(params.tracking_uri.partition("///")[2])}
        if "sqlite:///" in params.tracking_uri
        else {}
    )
    return {
        "the store": params.store_path,
        "the project": params.folder,
        "the working folder": Path.cwd(),
        "the home folder": Path.home(),
        "the repository": place / ".git",
        "DVC's folder": params.folder / ".dvc",
        **database,
    }
