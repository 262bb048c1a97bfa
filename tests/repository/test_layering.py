"""Dependencies run one way: flows -> tasks -> mgaa -> torch; the library knows nothing of what orchestrates it."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORCHESTRATORS = {"prefect", "mlflow", "dvc"}
FORBIDDEN = {
    "mgaa": {"flows", "tasks", "demo", "tests", "lm_eval", "datasets"} | ORCHESTRATORS,
    "demo": {"flows", "tasks", "tests"} | ORCHESTRATORS,
    "tasks": {"flows", "tests"},
    "flows": {"tests"},
}
"""By package: what none of its files may import, not even inside a function."""

ORDER = {
    "mgaa": (
        *("masking", "errors", "boundary", "methods", "budget", "models", "blocks", "inputs", "checkpoints"),
        *("evaluation", "statistics", "decomposition", "allocation", "ratios", "ranks", "factors", "levels"),
        *("anchoring", "plan", "recovery", "lora", "report", "decomposed", "arguments", "compress", "search"),
        *("__init__", "__main__"),
    ),
    "tasks": (
        *("__init__", "cache", "figures", "config", "data", "artifacts", "evaluation", "planning", "steps", "record"),
        *("sweep", "results", "search", "tracking", "audit", "upkeep"),
    ),
    "flows": (
        *("command", "__init__", "prepare_data", "parts", "evaluate", "schedule", "show"),
        *("show_search", "show_sweep", "deploy", "plan", "profile_device", "lineage", "store", "registry", "report"),
        *("compress", "search", "sensitivity", "sweep"),
    ),
}
"""By package: its folders, and the files beside them, from the bottom to the top; each needs only those before it."""

FILES = [path.relative_to(ROOT) for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


@cache
def imported(path: Path) -> frozenset[str]:
    """Every module that a file imports, anywhere in it, in full."""
    return frozenset(read_imports(path))


def read_imports(path: Path) -> Iterator[str]:
    package = path.parent.parts
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield inner if inner in MODULES else origin


def room(module: str) -> str:
    """The folder of a module below its package, or the name of its file."""
    return module.split(".")[1] if "." in module else "__init__"


def arrows(package: str) -> set[tuple[str, str]]:
    """Which room of a package needs which other one."""
    found = {
        (room(module), room(other))
        for module, path in MODULES.items()
        for other in imported(path)
        if module.split(".")[0] == other.split(".")[0] == package and other in MODULES
    }
    return {(one, other) for one, other in found if one != other}


def circle(module: str, needs: Mapping[str, set[str]]) -> list[str]:
    """The shortest way from a module back to itself along imports; empty where there is none."""
    ways, seen = [[module]], set[str]()
    for way in ways:
        for other in sorted(needs[way[-1]] - seen):
            if other == module:
                return [*way, module]
            seen.add(other)
            ways.append([*way, other])
    return []


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_file_imports_nothing_from_the_layers_above(package: str) -> None:
    files = [path for path in FILES if path.parts[0] == package]
    roots = {path: {module.partition(".")[0] for module in imported(path)} for path in files}
    assert len(files) > 5
    assert {path: found & FORBIDDEN[package] for path, found in roots.items() if found & FORBIDDEN[package]} == {}


@pytest.mark.parametrize("package", ORDER)
def test_a_folder_needs_only_those_below_it(package: str) -> None:
    order, found = ORDER[package], arrows(package)
    rooms = {room(module) for module in MODULES if module.split(".")[0] == package}
    assert rooms == set(order)
    assert len(found) > len(order)
    assert {(one, other) for one, other in found if order.index(one) < order.index(other)} == set()


def test_no_import_comes_back_to_its_file() -> None:
    needs = {module: {other for other in imported(path) if other in MODULES} for module, path in MODULES.items()}
    assert sum(map(len, needs.values())) > 1000
    assert [found for module in needs if (found := circle(module, needs))] == []


def test_of_our_packages_the_demo_knows_the_errors_and_how_to_convert_and_write_alone() -> None:
    ours = {
        module for path in FILES if path.parts[0] == "demo" for module in imported(path) if module.startswith("mgaa")
    }
    checkpoints = {f"mgaa.checkpoints.{name}" for name in ("folder", "gguf", "output_folder", "ownership")}
    assert ours <= {"mgaa.errors"} | checkpoints


def test_every_package_of_the_project_has_its_place() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(FORBIDDEN)


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in FILES}
    assert len(folders) > 30
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


@pytest.mark.slow
def test_the_library_imports_where_nothing_above_it_is_installed() -> None:
    absent = sorted(
        ORCHESTRATORS | {"flows", "tasks", "demo", "lm_eval", "datasets", "omegaconf", "pydantic", "matplotlib"}
    )
    script = f"""
import sys
sys.modules |= dict.fromkeys({absent})  # None: Python says that there is no such module
import mgaa
from importlib import import_module
from mgaa.methods import available_methods
for section in ("factors", "ratios", "ranks"):
    for name in available_methods(section):
        import_module(f"mgaa.{{section}}.{{name}}")
print(*(name for name in {absent} if sys.modules[name] is not None))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
