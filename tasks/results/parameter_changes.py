"""What of a run's parameters is not what the project sets by itself: those that its command has to name.

The project sets them in the `params.yaml` of the recorded commit, so the command of a report repeats the run from a clean checkout of it,
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
from tasks.config.parameters import load
from tasks.record.run_record import ELSEWHERE


def relevant(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's parameters, by dotted key, that its results depend on."""
    return {key: value for key, value in flat.items() if key.partition(".")[0] not in ELSEWHERE}


def changed(flat: Mapping[str, Any], commit: str | None) -> dict[str, tuple[Any, Any]]:
    """The relevant parameters that are not those of `params.yaml`: what they are there (None where it has no such key), and here."""
    usual = defaults(flat["case"], flat["method"], commit)
    found = {key: (usual.get(key), value) for key, value in relevant(flat).items() if key not in ("case", "method")}
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}


def defaults(case: str, method: str, commit: str | None) -> dict[str, Any]:
    """Every parameter of a case and a method by the `params.yaml` of a commit, or by that of the checkout where git does not tell."""
    own = environment.ROOT / "params.yaml"
    text = None if commit is None else environment.ask_git("show", f"{commit}:params.yaml")
    with TemporaryDirectory() as folder:
        committed = Path(folder, own.name)
        committed.write_text(own.read_text(encoding="utf-8") if text is None else text, encoding="utf-8")
        for path in (committed, own):
            try:
                return load(path, [f"case={case}", f"method={method}"]).flat()
            except UsageError:  # a case or a method that is not there
                continue
    return {}


def command(flat: Mapping[str, Any], changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The command that repeats a run, a word per parameter that is not the project's."""
    words = [f"case={flat['case']}", f"method={flat['method']}"]
    words += [f"{key}={written(value)}" for key, (_, value) in changes.items()]
    return " \\\n    ".join(["python -m flows.compress", *map(shlex.quote, words)])


def written(value: Any) -> str:
    """A value as it is written in `params.yaml` and on the command line, without what must not be shown."""
    return masked(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
