"""Rows from Hugging Face `datasets`: a saved data set, a folder of its data files, or the Hub at a commit.

A folder of data files is built in a temporary cache, so that reading it leaves nothing behind; what comes from the
Hub stays in the user's own cache, where it is found again without a network.
"""

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgaa.boundary import translate_errors, via_proxy
from mgaa.errors import InputError
from tasks.data.rows import Rows

DATA = (".parquet", ".arrow", ".csv")
"""Endings of the files that `datasets` reads from a folder."""

Read = tuple[Rows, dict[str, Any]]
"""Rows, and the identity of their source."""


def is_data_set(folder: Path, files: Sequence[Path]) -> bool:
    """Tell whether `folder`, with these files in it, is a saved data set or holds data files only."""
    return is_saved_data_set(folder) or (bool(files) and all(path.suffix in DATA for path in files))


def is_saved_data_set(folder: Path) -> bool:
    """Tell whether `datasets` saved this folder."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def describe_file(name: str, content: bytes) -> dict[str, Any]:
    """Identity of a file."""
    return {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def read_folder(folder: Path, split: str | None, columns: Sequence[str]) -> Read:
    """Read one split of a saved data set or of data files.

    Args:
        columns: columns to read; missing ones are left out.

    Raises:
        InputError: files are damaged, or the split or column is missing.
    """
    datasets = _library()
    with tempfile.TemporaryDirectory() as cache:
        with translate_errors(f"{folder} cannot be read by `datasets`", "check its files, or convert it to .jsonl"):
            data = (
                datasets.load_from_disk(str(folder))
                if is_saved_data_set(folder)
                else datasets.load_dataset(str(folder), cache_dir=cache)
            )
        rows = _rows(_choose(data, split, str(folder)), columns, str(folder))
    files = sorted(path for path in folder.rglob("*") if path.suffix in (*DATA, ".json"))
    records = [describe_file(path.relative_to(folder).as_posix(), path.read_bytes()) for path in files]
    return rows, {"kind": "datasets", "split": split, "files": records}


def read_hub(source: str, split: str | None, revision: str, subset: str | None, columns: Sequence[str]) -> Read:
    """Read one split of a data set of the Hub.

    Raises:
        InputError: there is neither a network nor a copy, or the subset, split or column is missing.
    """
    from huggingface_hub import constants

    datasets = _library()
    with translate_errors(
        f"{source} at {revision[:12]} cannot be loaded from the Hub{via_proxy(constants.ENDPOINT)}",
        "give a public data set and a network, or a copy in the local cache: check the id and `subset`, or download it once and give the "
        "folder",
    ):
        data = datasets.load_dataset(source, subset, revision=revision)
    rows = _rows(_choose(data, split, source), columns, source)
    return rows, {"kind": "hub", "id": source, "revision": revision, "subset": subset, "split": split}


def _library() -> Any:
    """Import `datasets`, which takes a second, and switch its progress bars off if there is no terminal."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _choose(data: Any, split: str | None, source: str) -> Any:
    """Choose one split; a data set saved without splits is taken whole, like a file."""
    if not isinstance(data, dict):
        return data
    if split not in data:
        raise InputError(
            f"{source} has no split {split!r}; there are: {', '.join(map(str, data))}: set `split` to one."
        )
    return data[split]


def _rows(data: Any, columns: Sequence[str], source: str) -> Rows:
    there = [name for name in columns if name in data.column_names]
    if not there:
        raise InputError(
            f"{source} has no field {' or '.join(map(repr, columns))}; there are: {', '.join(data.column_names)}: set `field`."
        )
    chosen = data.select_columns(there)
    try:
        chosen.data.validate(full=True)  # Arrow would crash the process over false offsets and lengths
    except ValueError as error:
        raise InputError(f"{source} is damaged ({error}): fetch it again.") from error
    values = zip(*(list(chosen[name]) for name in there), strict=True)
    return Rows(source, [(number, dict(zip(there, row, strict=True))) for number, row in enumerate(values, 1)])
