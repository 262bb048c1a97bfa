"""Parameters of a run that differ from the project's own settings: those that its command has to name.

The project's settings are the `params.yaml` of the recorded commit, so the command in a report repeats the run from a clean checkout of it,
whether a value came from the command line, from `dvc exp run -S` or from an edited file.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mgaa.errors import UsageError
from mgaa.masking import masked
from tasks.cache import environment
from tasks.config.parameters import load_parameters
from tasks.record.run_record import ELSEWHERE


def relevant_parameters(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a run, by dotted key, that its results depend on."""
    return {key: value for key, value in flat.items() if key.partition(".")[0] not in ELSEWHERE}


def changed_parameters(flat: Mapping[str, Any], commit: str | None) -> dict[str, tuple[Any, Any]]:
    """Relevant parameters that differ from `params.yaml`: their value there (None if it has no such key) and in the run."""
    usual = defaults(flat["case"], flat["method"], commit)
    pairs = {
        key: (usual.get(key), value)
        for key, value in relevant_parameters(flat).items()
        if key not in ("case", "method")
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def defaults(case: str, method: str, commit: str | None) -> dict[str, Any]:
    """Parameters of a case and a method in the `params.yaml` of a commit, or in the checkout's if git does not have the commit."""
    own = environment.ROOT / "params.yaml"
    text = None if commit is None else environment.run_git("show", f"{commit}:params.yaml")
    with TemporaryDirectory() as folder:
        committed = Path(folder, own.name)
        committed.write_text(own.read_text(encoding="utf-8") if text is None else text, encoding="utf-8")
        for path in (committed, own):
            try:
                return load_parameters(path, [f"case={case}", f"method={method}"]).flat()
            except UsageError:  # the file has no such case or method
                continue
    return {}


def format_command(flat: Mapping[str, Any], changes: Mapping[str, tuple[Any, Any]]) -> str:
    """Command that repeats a run, with one word per parameter that differs from the project's settings."""
    words = [f"case={flat['case']}", f"method={flat['method']}"]
    words += [f"{key}={format_value(value)}" for key, (_, value) in changes.items()]
    return " \\\n    ".join(["python -m flows.compress", *map(shlex.quote, words)])


def format_value(value: Any) -> str:
    """Format a value as in `params.yaml` and on the command line, with secrets masked."""
    return masked(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
