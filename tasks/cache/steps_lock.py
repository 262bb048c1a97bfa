"""`steps.lock`: the digest of the code of every step, method and architecture.

    python -m tasks.cache.steps_lock          writes it (`make lock`)

A line changes if results can change. DVC depends on this one file, its diff shows in a review what an edit voids, and a test compares it
with the code.
"""

import ast
from typing import Any

import yaml

from mgaa.methods import parse_file
from tasks.cache import source

LOCK = source.ROOT / "steps.lock"
HEAD = "# Written by `make lock`: digests of the code of every step, method and architecture. What has a changed line is computed anew.\n"
METHODS = ("factors", "ranks", "ratios")
"""Folders of `mgaa` in which a file is a method."""


def steps() -> dict[str, str]:
    """Location of the body of every cached step, by the name of its task."""
    found = {}
    for path in sorted((source.ROOT / "tasks").rglob("*.py")):
        for statement in parse_file(path).body:
            if isinstance(statement, ast.FunctionDef) and any(map(_makes_step, statement.decorator_list)):
                found[statement.name] = f"{source.name_of(path)}:{statement.name}"
    return dict(sorted(found.items()))


def locked_code() -> dict[str, Any]:
    """Expected content of `steps.lock`."""
    folders = {
        folder: {name: f"mgaa.{folder}.{name}" for name in source.methods(f"mgaa.{folder}")} for folder in METHODS
    }
    return {
        "steps": {name: short(source.code_of(root)) for name, root in steps().items()},
        "methods": {
            folder: {name: short(source.code_of(root)) for name, root in roots.items()}
            for folder, roots in folders.items()
        },
        "architectures": {name: short(source.entries_of(name)) for name in sorted(source.entries())},
    }


def short(digest: str) -> str:
    """Shorten a digest; the prefix is unique within the file."""
    return digest.removeprefix("sha256:")[:16]


def write_lock() -> None:
    """Write `steps.lock`."""
    LOCK.write_text(HEAD + yaml.safe_dump(locked_code(), sort_keys=False), encoding="utf-8")


def _makes_step(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Name) and called.id in ("step", "resuming_step")


if __name__ == "__main__":
    write_lock()
