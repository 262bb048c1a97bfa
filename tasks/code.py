"""The digest of a step's code: its own module and, transitively, every module of ours that it imports.

Prefect's `TASK_SOURCE` sees the body of one function and reuses stale results when a library function behind it changes. Here the
imports are walked in the syntax tree, those inside functions included, without executing anything. `from mgaa import ranks` resolves to
the file of `mgaa.ranks` and does not draw in `mgaa/__init__.py`, which imports everything; so adding a file voids nothing that does not
import it. A step that picks a method by name at run time declares the folder (`methods={"method": "mgaa.ratios"}`), and the file
of the selected method joins. The modules that only run, store and record are left out: they decide where a result lies, not what is in it.
"""

import ast
import hashlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from threading import Lock

from mgaa.errors import UsageError
from tasks.sealing import digest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mgaa", "demo", "tasks")
FOLDERS = (*PACKAGES, "flows")
"""Where all code of the project lies."""
ORCHESTRATION = {
    f"tasks.{name}"
    for name in (
        *("artifact", "sealing", "writing", "step", "stage", "recording", "code", "provenance"),
        *("home", "remote", "devices"),
        *("parameters", "sections", "choices", "options", "overrides", "typed", "explain", "tracking", "lineage"),
    )
}


@cache
def code_digest() -> str:
    """One sha256 for all code of the project and the words of its report, committed or not."""
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if is_code(path))
    return digest({key(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


def is_code(path: Path) -> bool:
    """Tell whether a file below one of `FOLDERS` is code: a module, or words of the report."""
    return path.suffix == ".py" or path.parent.name == "templates"


@cache
def sources(*modules: str) -> dict[str, str]:
    """sha256 of the files of `modules` and of every file of ours they import, by path below the project root."""
    seen: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if path is None or ORCHESTRATION & {name, name.rpartition(".")[0]} or key(path) in seen:
            continue
        seen[key(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        waiting += [imported for imported in imports(name, path) if imported.split(".")[0] in PACKAGES]
    return dict(sorted(seen.items()))


@cache
def packages(*modules: str) -> frozenset[str]:
    """The top-level packages of others that `modules` and the files of ours behind them import."""
    paths = [ROOT / name for name in sources(*modules)]
    names = {imported.split(".")[0] for path in paths for imported in imports(name_of(path), path)}
    return frozenset(names - set(PACKAGES))


def method_module(folder: str, method: str) -> str:
    """The module of a method, `mgaa.ratios` and `softmax` giving `mgaa.ratios.softmax`; it must exist."""
    module = f"{folder}.{method}"
    if file_of(module) is None:
        raise UsageError(f"There is no method {method!r} in {folder}: expected one of {', '.join(methods(folder))}.")
    return module


def methods(folder: str) -> list[str]:
    """The methods that a folder of the library holds: its files."""
    return sorted(path.stem for path in (ROOT / folder.replace(".", "/")).glob("*.py") if not path.stem.startswith("_"))


_one_parser = Lock()
"""CPython 3.11 counts the depth of the syntax tree per interpreter, not per thread, and two that parse at once end in a SystemError."""


def imports(module: str, path: Path) -> Iterator[str]:
    """The modules a file imports anywhere in it, relative ones made absolute."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    with _one_parser:
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (above, node.module) if part)
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield inner if origin.split(".")[0] in PACKAGES and file_of(inner) else origin


def file_of(module: str) -> Path | None:
    """The file of a module of ours, found without importing its packages; None for others."""
    path = ROOT / module.replace(".", "/")
    if module.split(".")[0] not in PACKAGES and not path.with_suffix(".py").is_file():
        return None
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def key(path: Path) -> str:
    """How a file is named in manifests."""
    return path.relative_to(ROOT).as_posix()


def name_of(path: Path) -> str:
    """The module of a file below the project root."""
    relative = path.relative_to(ROOT).with_suffix("")
    return ".".join(relative.parts[:-1] if relative.name == "__init__" else relative.parts)


def module_of(function: Callable[..., object]) -> str:
    """The module that defines a function, by its file (a script's `__name__` does not tell)."""
    path = Path(inspect.getfile(function)).resolve()
    if not path.is_relative_to(ROOT):
        raise ValueError(
            f"{path} is outside {ROOT}: expected the steps in the project, where their code can be followed."
        )
    return name_of(path)
