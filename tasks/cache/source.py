"""Code of a step: every definition of ours that its body reaches, by its meaning.

Prefect's `TASK_SOURCE` sees the body of one function and reuses stale results when a library function that it calls changes. Here names are
followed from the body to the functions, classes and constants that they stand for, and on to those that these use, in the syntax tree,
without executing anything (tasks/cache/syntax.py). The digest of the code covers what these definitions mean: prose, messages, formatting,
types, moved files and renamed functions void nothing, and neither does code that the step does not reach. If a module is used as a value
(`getattr(module, name)`), all of it counts, and so does what a module executes on import.

A step that picks a method by name at run time declares the folder (`methods={"ratios": "mgaa.ratios"}`), and the file of the selected
method is included. Modules that only run, store and record are left out: they decide where a result is stored, not what is in it. So are
those that by tested contract change no bit, and data that enters a key as data.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

from mgaa.errors import UsageError
from tasks.cache.manifest import digest
from tasks.cache.syntax import Meaning, Module, meaning_of, read_module

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mgaa", "demo", "tasks")
FOLDERS = (*PACKAGES, "flows")
"""Folders with all code of the project."""
ORCHESTRATION = ("tasks.cache", "tasks.config", "tasks.record", "tasks.tracking")
"""Folders that decide where a result is stored, not what is in it."""
ERRORS = "mgaa.errors"
INERT = {
    "mgaa.errors",
    "mgaa.blocks.hardware",
    "mgaa.blocks.memory",
    "mgaa.blocks.resume",
    "mgaa.blocks.hidden_states",
    "mgaa.blocks.offload",
    "mgaa.checkpoints.shards",
    "mgaa.decomposition.cuda_streams",
    "mgaa.checkpoints.output_folder",
    "mgaa.checkpoints.ownership",
}
"""Modules that by contract change no bit of a result: errors, room on the machine, and whether a model is in memory or in its files."""
ENTRIES = "mgaa.models.entries"
"""Tables of architectures: the entries of a backbone enter a key through its artifact, so that a new one voids nothing."""
ROUNDS = 4
"""Depth to which definitions of equal text are distinguished by what they refer to."""


@cache
def code_digest() -> str:
    """sha256 of all code of the project and the templates of its report, committed or not."""
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if is_code(path))
    return digest({key(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


def is_code(path: Path) -> bool:
    """Tell whether a file below one of `FOLDERS` is code: a module, or a template of the report."""
    return path.suffix == ".py" or path.parent.name == "templates"


@cache
def code_of(*roots: str) -> str:
    """Digest of the code that `roots` reach: modules, or definitions as `module:name`."""
    return digest(sorted({*_digests(reached(*roots)).values()}))


@cache
def packages(*roots: str) -> frozenset[str]:
    """Top-level packages of others that the code reached from `roots` refers to."""
    names = {name.partition(".")[0] for meaning in reached(*roots).values() for name in meaning.references}
    return frozenset(names - {*PACKAGES, "tests"})


@cache
def entries_of(*model_types: str) -> str:
    """Digest of the entries of these model types in the tables of architectures; a type without an entry adds nothing."""
    tables = _module(ENTRIES).tables()
    entry_names = [f"{table}[{name}]" for table, known in tables.items() for name in model_types if name in known]
    return digest({name: code_of(f"{ENTRIES}:{name}") for name in entry_names})


def entries() -> set[str]:
    """Model types in the tables of architectures."""
    return {name for known in _module(ENTRIES).tables().values() for name in known}


@cache
def sources(*modules: str) -> dict[str, str]:
    """sha256 of the files of `modules` and of every file of ours they import, byte by byte, by path below the project root.

    For audits: they cover everything that could have been executed, and enter no key.
    """
    hashes: dict[str, str] = {}
    waiting = [root.partition(":")[0] for root in modules]
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if path is None or _belongs(name, ORCHESTRATION) or key(path) in hashes:
            continue
        hashes[key(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        waiting += [_split(each)[0] for each in _module(name).everything if each.split(".")[0] in PACKAGES]
    return dict(sorted(hashes.items()))


Definition = tuple[str, str]
"""A module, and a name in it: of a function, class or constant, of an entry of a table as `TABLE[key]`, or "" for what it executes."""


def reached(*roots: str) -> dict[Definition, Meaning]:
    """Meaning of every definition that `roots` reach."""
    meanings: dict[Definition, Meaning] = {}
    executed: set[str] = set()
    waiting = [each for root in roots for each in _root(root)]
    while waiting:
        module, name = waiting.pop()
        if (module, name) in meanings or _is_left_out(module):
            continue
        meaning = meanings[module, name] = meaning_of(_module(module), name)
        waiting += [each for reference in meaning.references for each in _targets(reference)]
        if module not in executed:
            executed.add(module)
            imported = [_split(each)[0] for each in _module(module).modules]
            waiting += [(each, "") for each in (module, *imported) if file_of(each) is not None]
    return meanings


def _root(root: str) -> list[Definition]:
    module, _, name = root.partition(":")
    return [(module, name)] if name.partition("[")[0] in _module(module).definitions else _all_of(module)


def _all_of(module: str) -> list[Definition]:
    return [(module, name) for name in _module(module).definitions]


@cache
def _targets(reference: str) -> list[Definition]:
    """Definitions that an absolute name stands for: one, every one of a module that is used as a value, or none of ours."""
    module, rest = _split(reference)
    if file_of(module) is None or _is_left_out(module):
        return []
    if not rest:
        return _all_of(module)
    name, *more = rest
    if module == ENTRIES and name in _module(module).tables():
        return []
    if name in _module(module).definitions:
        return [(module, name)]
    if name in _module(module).imports:
        return _targets(".".join([_module(module).imports[name], *more]))
    return _all_of(module)


def _digests(meanings: Mapping[Definition, Meaning]) -> dict[Definition, str]:
    """Digest of every definition, by its text and, `ROUNDS` deep, the digests of what it refers to."""
    found = {definition: digest(meaning.text) for definition, meaning in meanings.items()}
    for _ in range(ROUNDS):
        found = {
            definition: digest([found[definition], *(_label(reference, found) for reference in meaning.references)])
            for definition, meaning in meanings.items()
        }
    return found


def _label(reference: str, digests: Mapping[Definition, str]) -> list[str]:
    """Contribution of a reference to the digest: the definitions that it stands for, and the attributes taken of them."""
    module, rest = _split(reference)
    if file_of(module) is None:
        return [reference]
    if _is_left_out(module):
        return rest[-1:] if module == ERRORS else []
    return [*sorted(digests[target] for target in _targets(reference)), *rest[1:]]


@cache
def _split(name: str) -> tuple[str, list[str]]:
    """Split an absolute name into the module of ours that it begins with, and the rest."""
    parts = name.split(".")
    ours = (count for count in range(len(parts), 0, -1) if file_of(".".join(parts[:count])) is not None)
    count = next(ours, len(parts))
    return ".".join(parts[:count]), parts[count:]


@cache
def _is_left_out(module: str) -> bool:
    return _belongs(module, {*ORCHESTRATION, *INERT})


def _belongs(module: str, names: Iterable[str]) -> bool:
    """Tell whether a module is one of these, or in one of these packages."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


@cache
def _module(name: str) -> Module:
    path = file_of(name)
    assert path is not None, name
    return read_module(name, path)


def method_module(folder: str, method: str) -> str:
    """Module of a method, `mgaa.ratios` and `softmax` giving `mgaa.ratios.softmax`; it must exist."""
    module = f"{folder}.{method}"
    if file_of(module) is None:
        raise UsageError(f"There is no method {method!r} in {folder}: expected one of {', '.join(methods(folder))}.")
    return module


def methods(folder: str) -> list[str]:
    """Methods in a folder of the library: its files."""
    return sorted(path.stem for path in (ROOT / folder.replace(".", "/")).glob("*.py") if not path.stem.startswith("_"))


@cache
def file_of(module: str) -> Path | None:
    """File of a module of ours, found without importing its packages; None for others."""
    path = ROOT / module.replace(".", "/")
    if module.split(".")[0] not in PACKAGES and not path.with_suffix(".py").is_file():
        return None
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def key(path: Path) -> str:
    """Name of a file in manifests."""
    return path.relative_to(ROOT).as_posix()


def name_of(path: Path) -> str:
    """Module of a file below the project root."""
    relative = path.relative_to(ROOT).with_suffix("")
    return ".".join(relative.parts[:-1] if relative.name == "__init__" else relative.parts)


def module_of(function: Callable[..., object]) -> str:
    """Module that defines a function, by its file (the `__name__` of a script does not name it)."""
    path = Path(inspect.getfile(function)).resolve()
    if not path.is_relative_to(ROOT):
        raise ValueError(
            f"{path} is outside {ROOT}: expected the steps in the project, where their code can be followed."
        )
    return name_of(path)
