"""What is imported is declared, and each extra of pyproject.toml is what its users need: no command imports a package of the tests."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LIBRARY = {"gguf", "recovery", "search", "vision"}
"""Extras of the wheel; the others are for work in a checkout."""
OPTIONAL = set(EXTRAS) - LIBRARY - {"pipeline", "dev"}
"""What some commands need with some settings: imported where it is used, and named by a message where it is missing."""
OURS = {"mgaa", "tasks", "flows", "demo", "tests", "benchmarks"}
DISTRIBUTIONS = packages_distributions()


def normal(name: str) -> str:
    """The name of a distribution as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: Iterable[str]) -> set[str]:
    """The distributions that requirements name, those of the extras of mgaa among them."""
    found: set[str] = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[(.*?)\])?", requirement).groups()
        if name == "mgaa":
            found |= declared(line for extra in extras.split(",") for line in EXTRAS[extra])
        else:
            found.add(normal(name))
    return found


def imports(nodes: Iterable[ast.AST], *, inside: bool) -> Iterator[tuple[str, bool]]:
    """Every package that is imported when the program runs, and whether inside a function only."""
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0], inside
        deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(ast.iter_child_nodes(node), inside=deeper)


def undeclared(folder: str, requirements: Iterable[str], *, inside: bool) -> list[str]:
    """Imports at the top of files of a folder, or inside functions, that no requirement covers."""
    allowed = declared(requirements)
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    return [
        f"{path.relative_to(ROOT)}: {package}"
        for path in files
        for package, deep in imports([ast.parse(path.read_text(encoding="utf-8"))], inside=False)
        if deep == inside and package not in OURS | sys.stdlib_module_names
        if not allowed & {normal(name) for name in DISTRIBUTIONS.get(package, [package])}
    ]


@pytest.mark.parametrize("inside", [False, True])
def test_the_library_imports_what_the_wheel_and_its_extras_bring(inside: bool) -> None:
    extras = [line for extra in LIBRARY for line in EXTRAS[extra]]
    assert undeclared("mgaa", [*PROJECT["dependencies"], *extras], inside=inside) == []


@pytest.mark.parametrize("folder", ["demo", "tasks", "flows"])
def test_the_commands_import_what_the_pipeline_brings_and_the_rest_where_it_is_used(folder: str) -> None:
    brought = [*PROJECT["dependencies"], *EXTRAS["pipeline"]]
    assert undeclared(folder, brought, inside=False) == []
    assert undeclared(folder, [*brought, f"mgaa[{','.join(OPTIONAL)}]"], inside=True) == []


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "docs"])
def test_tests_and_benchmarks_import_what_is_declared(folder: str) -> None:
    everything = [*PROJECT["dependencies"], f"mgaa[{','.join(EXTRAS)}]"]
    assert undeclared(folder, everything, inside=False) == []
    assert undeclared(folder, everything, inside=True) == []


def test_the_pipeline_has_none_of_the_optional_packages() -> None:
    brought = declared(EXTRAS["pipeline"])
    assert not brought & declared(line for extra in [*OPTIONAL, "dev"] for line in EXTRAS[extra])


def test_what_is_declared_is_pinned() -> None:
    pinned = {normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert declared([*PROJECT["dependencies"], f"mgaa[{','.join(EXTRAS)}]"]) <= pinned


@pytest.mark.parametrize(
    ("target", "extra"),
    [("demo", "pipeline"), ("plan", "pipeline"), ("install", "pipeline"), ("test", "dev"), ("check", "dev")]
    + [(f"install-{extra}", extra) for extra in sorted({*OPTIONAL, "dev"})],
)
def test_a_target_installs_the_extra_that_it_needs(target: str, extra: str, tmp_path: Path) -> None:
    command = ["make", "-C", str(ROOT), "--dry-run", f"PYTHON={sys.executable}", f"VENV={tmp_path}/new", target]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (extras,) = re.findall(r"--constraint constraints\.txt --editable '\.\[(.*)\]'", printed)
    assert set(extras.split(",")) == {"pipeline", extra}
