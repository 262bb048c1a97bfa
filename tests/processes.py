"""A small project that is run in processes of its own, and broken."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Project:
    """A copy of the machinery with three small steps (tests/project), to be run in processes of its own, and broken."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """`python` with these words in the project, its streams as pipes."""
        pipe = subprocess.PIPE
        variables = {**os.environ, "PREFECT_HOME": str(self.root / ".prefect"), **self.environment, **environment}
        command = [sys.executable, *words]
        return subprocess.Popen(command, cwd=self.root, env=variables, text=True, stdin=pipe, stdout=pipe, stderr=pipe)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`start`, and wait for the end."""
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def executed(self) -> list[str]:
        """The steps whose bodies ran since the last time this was asked."""
        log = self.root / "executed.log"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def contents(self) -> list[str]:
        """The files and folders of the store two levels deep, locks apart."""
        return sorted(
            str(path.relative_to(self.root)) for path in self.root.glob("store/*/*") if path.suffix != ".lock"
        )


def copy_project(root: Path) -> Project:
    """The machinery of the repository around the small steps of tests/project."""
    shutil.copytree(ROOT / "tests" / "project", root)
    for name in (
        "artifact",
        "sealing",
        "writing",
        "step",
        "stage",
        "recording",
        "code",
        "syntax",
        "provenance",
        "home",
        "in_use",
        "earlier",
        "remote",
        "devices",
        "where",
        "database",
        "tracking_store",
        "findings",
        "signing",
    ):
        shutil.copy(ROOT / "tasks" / f"{name}.py", root / "tasks")
    for name in ("parameters", "choices", "options", "overrides", "typed", "explain"):
        shutil.copy(ROOT / "tasks" / f"{name}.py", root / "tasks")
    shutil.copytree(ROOT / "tasks" / "sections", root / "tasks" / "sections")
    for name in ("__init__", "cli", "early_exit", "engine", "ephemeral", "output", "workers"):
        shutil.copy(ROOT / "flows" / f"{name}.py", root / "flows")
    for name in ("boundary.py", "errors.py", "masking.py", "memory.py", "methods.py", "output.py", "ownership.py"):
        shutil.copy(ROOT / "mgaa" / name, root / "mgaa")
    for name in ("factors", "ratios", "ranks"):  # read by the parameters, never imported
        shutil.copytree(ROOT / "mgaa" / name, root / "mgaa" / name)
    shutil.copy(ROOT / "params.yaml", root)
    return Project(root)
