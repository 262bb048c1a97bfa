"""Dependencies run one way: flows -> tasks -> mgaa -> torch; the library knows nothing of what orchestrates it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
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

FILES = [path.relative_to(ROOT) for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, in full."""
    package = path.parent.parts
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*base, *([node.module] if node.module else [])])


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_nothing_from_the_layers_above(path: Path) -> None:
    roots = {module.partition(".")[0] for module in imported(path)}
    assert not roots & FORBIDDEN[path.parts[0]]


def test_of_our_packages_the_demo_knows_the_errors_and_how_to_write_alone() -> None:
    ours = {
        module for path in FILES if path.parts[0] == "demo" for module in imported(path) if module.startswith("mgaa")
    }
    assert ours <= {"mgaa.errors", "mgaa.checkpoints.output_folder", "mgaa.checkpoints.ownership"}


def test_every_package_of_the_project_has_its_place() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(FORBIDDEN)


@pytest.mark.parametrize("folder", sorted({str(path.parent) for path in FILES}))
def test_every_folder_of_code_is_a_package(folder: str) -> None:
    assert (ROOT / folder / "__init__.py").is_file()


def test_the_library_imports_where_nothing_above_it_is_installed() -> None:
    absent = sorted(
        ORCHESTRATORS | {"flows", "tasks", "demo", "lm_eval", "datasets", "omegaconf", "pydantic", "matplotlib"}
    )
    script = f"""
import sys
sys.modules |= dict.fromkeys({absent})  # None: Python says that there is no such module
import mgaa
from importlib import import_module
from mgaa.methods import available
for section in ("factors", "ratios", "ranks"):
    for name in available(section):
        import_module(f"mgaa.{{section}}.{{name}}")
print(*(name for name in {absent} if sys.modules[name] is not None))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
