"""Where the items of the standard tasks are on the Hub: the data set and the split that lm-eval's own task files name."""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mgaa.errors import UsageError
from tasks.artifacts.specs import HubItems
from tasks.data.hub_datasets import commit_of
from tasks.evaluation.zero_shot import OFFICIAL

HUB = "hub"
"""The value of `evaluation.tasks_folder` that stands for the Hub."""


def hub_items(tasks: Sequence[str]) -> dict[str, HubItems]:
    """Find the items of tasks, at the commits that the Hub has now.

    Raises:
        UsageError: a task without a data set on the Hub.
        InputError: the Hub does not answer.
    """
    if missing := [task for task in tasks if task not in OFFICIAL]:
        raise UsageError(
            f"evaluation.tasks_folder is {HUB!r}, but {missing[0]} has no data set on the Hub: set it to a folder with "
            f"{missing[0]}.jsonl, or leave {missing[0]} out of evaluation.tasks."
        )
    return {task: _items_of(definition(task)) for task in tasks}


def definition(task: str) -> dict[str, Any]:
    """Read the task file of the harness, with those that it includes."""
    return _read(Path(str(importlib.resources.files("lm_eval"))) / "tasks" / OFFICIAL[task])


def _items_of(given: dict[str, Any]) -> HubItems:
    """The harness evaluates the test split where a task names one, else the validation split."""
    source, split = given["dataset_path"], given.get("test_split") or given["validation_split"]
    return HubItems(source, given.get("dataset_name"), split, commit_of(source))


class _Loader(yaml.SafeLoader):
    """Reads task files without the functions that they name."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    included = found.pop("include", None)
    return {**(_read(path.parent / included) if included else {}), **found}
