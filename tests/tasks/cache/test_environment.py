"""What a result was made with is the same whether torch is imported or not, and changes with what can change bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.cache import environment

OWN = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def test_the_flags_before_torch_is_imported_are_those_it_starts_with(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = environment.flags()
    monkeypatch.delitem(sys.modules, "torch")
    assert environment.flags() == imported


def test_precision_is_part_of_the_environment() -> None:
    before = environment.environment([])
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert environment.environment([]) != before
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert environment.environment([]) == before


def test_determinism_is_part_of_the_environment() -> None:
    before = environment.environment([])
    torch.use_deterministic_algorithms(True)
    try:
        assert environment.environment([]) != before
    finally:
        torch.use_deterministic_algorithms(False)


def test_versions_of_what_the_code_imports_are_part_of_the_environment_and_of_nothing_else() -> None:
    assert environment.environment(["transformers", "rich"])["packages"].keys() == {"torch", "transformers"}


def test_the_build_of_torch_is_read_without_importing_it() -> None:
    assert environment.cuda() == torch.version.cuda
    assert environment.installed("torch") == torch.__version__


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project with one file of every sort, in which provenance looks."""
    files = (
        "params.yaml",
        "dvc.lock",
        "README.md",
        "mgaa/budget.py",
        "tasks/results/templates/card.md",
        "tasks/evaluation/definitions/a.yaml",
    )
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    (tmp_path / ".gitignore").write_text("__pycache__/\nown.py\n")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, env={**os.environ, **OWN}, check=True)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    return tmp_path


def git_facts() -> dict[str, object]:
    return dict(environment.git.__wrapped__())


def test_parameters_locks_and_documents_make_no_run_dirty(repository: Path) -> None:
    for name in ("params.yaml", "dvc.lock", "README.md", "new.py", "mgaa/notes.txt", "mgaa/__pycache__/budget.pyc"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("b")
    assert git_facts()["dirty"] is False


@pytest.mark.parametrize("name", ["mgaa/budget.py", "tasks/results/templates/card.md", "mgaa/new.py", "flows/own.py"])
def test_code_that_is_not_that_of_the_commit_makes_a_run_dirty(repository: Path, name: str) -> None:
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).write_text("b")
    assert git_facts()["dirty"] is True


def test_removed_and_moved_code_makes_a_run_dirty_staged_or_not(repository: Path) -> None:
    (repository / "mgaa" / "budget.py").rename(repository / "mgaa" / "costs.py")
    assert environment.changed_code() == ["mgaa/budget.py", "mgaa/costs.py"]
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    assert environment.changed_code() == ["mgaa/budget.py", "mgaa/costs.py"]


def test_outside_git_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert git_facts() == {"commit": None, "dirty": None}
