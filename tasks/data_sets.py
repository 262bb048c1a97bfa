"""Documents out of Hugging Face `datasets`: a saved data set, a folder of its data files, or the Hub at a commit.

A row is a document. A folder of data files is built in a temporary cache, so that reading it leaves nothing behind; what comes from the
Hub stays in the user's own cache, where it is found again without a network.
"""

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from mgaa.boundary import one_error, through
from mgaa.errors import InputError
from tasks.cutting import cut_rows

DATA = (".parquet", ".arrow", ".csv")
"""What makes a folder one of `datasets`."""

Read = tuple[list[str], dict[str, Any]]
"""Texts and identity, the fields of `tasks.documents.Documents`."""


def has_data(folder: Path) -> bool:
    """Whether `folder` holds data files, at any depth."""
    return any(path.suffix in DATA for path in folder.rglob("*"))


def record(name: str, content: bytes) -> dict[str, Any]:
    """What identifies a file."""
    return {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def read_folder(folder: Path, split: str | None, field: str, separator: str) -> Read:
    """One split of a saved data set or of data files.

    Raises:
        InputError: damaged files, or a split or field that is not there.
    """
    datasets = _library()
    saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
    with tempfile.TemporaryDirectory() as cache:
        with one_error(f"{folder} cannot be read by `datasets`", "check its files, or convert it to .jsonl"):
            data = (
                datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder), cache_dir=cache)
            )
        texts, rule = cut_rows(_column(_choose(data, split, str(folder)), field, str(folder)), separator)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (*DATA, ".json"))
    records = [record(path.relative_to(folder).as_posix(), path.read_bytes()) for path in files]
    return texts, {"kind": "datasets", "split": split, "field": field, "separator": rule, "files": records}


def read_hub(source: str, split: str | None, revision: str, subset: str | None, field: str, separator: str) -> Read:
    """One split of a data set of the Hub.

    Raises:
        InputError: no network and no copy, or a subset, split or field that is not there.
    """
    from huggingface_hub import constants

    datasets = _library()
    with one_error(
        f"{source} at {revision[:12]} cannot be loaded from the Hub{through(constants.ENDPOINT)}",
        "give a public data set and a network, or a copy in the local cache: check the id and `subset`, or download it once and give the "
        "folder",
    ):
        data = datasets.load_dataset(source, subset, revision=revision)
    texts, rule = cut_rows(_column(_choose(data, split, source), field, source), separator)
    identity = {
        "kind": "hub",
        "id": source,
        "revision": revision,
        "subset": subset,
        "split": split,
        "field": field,
        "separator": rule,
    }
    return texts, identity


def _library() -> Any:
    """`datasets`, which takes a second to import, without progress bars where nobody sees them."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _choose(data: Any, split: str | None, source: str) -> Any:
    """One split; a data set saved without splits is taken whole, like a file."""
    if not isinstance(data, dict):
        return data
    if split not in data:
        raise InputError(
            f"{source} has no split {split!r}; there are: {', '.join(map(str, data))}: set `split` to one."
        )
    return data[split]


def _column(data: Any, field: str, source: str) -> list[str]:
    if field not in data.column_names:
        raise InputError(f"{source} has no field {field!r}; there are: {', '.join(data.column_names)}: set `field`.")
    rows = list(data[field])
    if not all(isinstance(row, str) for row in rows):
        raise InputError(f"The field {field!r} of {source} is not text in every row: set `field` to one that is.")
    return rows
