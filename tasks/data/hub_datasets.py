"""Rows from Hugging Face `datasets`: a saved data set, a folder of its data files, or the Hub at a commit.

A folder of data files is built in a temporary cache, so that reading it leaves nothing behind; what comes from the
Hub stays in the user's own cache, where it is found again without a network. A Hub that does not answer is asked once, not again and again
(`datasets` alone takes minutes to give up).
"""

import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mgaa.boundary import describe_cause, translate_errors, via_proxy
from mgaa.errors import InputError
from tasks.data.rows import Rows

DATA = (".parquet", ".arrow", ".csv")
"""Endings of the files that `datasets` reads from a folder."""

PATIENCE = 10.0
"""Seconds that the Hub has for an answer."""

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
    data = load_from_hub(source, subset, revision)
    rows = _rows(_choose(data, split, source), columns, source)
    return rows, {"kind": "hub", "id": source, "revision": revision, "subset": subset, "split": split}


def read_all(source: str, split: str, revision: str, subset: str | None) -> list[dict[str, Any]]:
    """Read all columns of one split of a data set of the Hub.

    Raises:
        InputError: as `load_from_hub`, or the split is missing.
    """
    rows: list[dict[str, Any]] = _choose(load_from_hub(source, subset, revision), split, source).to_list()
    return rows


def load_from_hub(source: str, subset: str | None, revision: str) -> Any:
    """Load a data set of the Hub at a commit, from the user's cache where it is there.

    Raises:
        InputError: there is neither an answer nor a copy, or no such data set or subset.
    """
    from huggingface_hub import constants

    datasets, silent = _library(), _silence(source, revision)
    failed = f"{source} at {revision[:12]} cannot be loaded from the Hub{via_proxy(constants.ENDPOINT)}{silent}"
    remedy = (
        "give a public data set and a network, or a copy in the local cache: check the id and `subset`, or download it once and give the "
        "folder"
    )
    with _unasked(bool(silent)), translate_errors(failed, remedy):
        return datasets.load_dataset(source, subset, revision=revision)


def commit_of(source: str) -> str:
    """Ask the Hub for the commit that a data set is at.

    Raises:
        InputError: the Hub does not answer, or has no such data set.
    """
    from huggingface_hub import HfApi, constants

    remedy = "give a network, or local files instead"
    with translate_errors(f"the Hub{via_proxy(constants.ENDPOINT)} does not tell the commit of {source}", remedy):
        return str(HfApi().dataset_info(source, timeout=PATIENCE).sha)


def _silence(source: str, revision: str) -> str:
    """Say that the Hub does not answer, as the middle of a message; empty where it does, whatever the answer is."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(source, revision=revision, timeout=PATIENCE)
    except HfHubHTTPError:
        return ""
    except Exception as error:  # whatever the HTTP client of this version raises
        return f", which does not answer ({describe_cause(error)})"
    return ""


@contextmanager
def _unasked(silent: bool) -> Iterator[None]:
    """Within this context a silent Hub is not asked again: the libraries look into their caches alone."""
    import datasets
    from huggingface_hub import constants

    given = (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    if silent:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = given


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
