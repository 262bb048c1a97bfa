"""A small project that is run in separate processes, and broken."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("mgaa/factors", "mgaa/ratios", "mgaa/ranks")
"""Read by the parameters, never imported."""
FILES = (
    *("params.yaml", "flows/__init__.py"),
    *("tasks/record/findings.py", "tasks/record/signing.py", "tasks/upkeep/store_lock.py"),
    *("tasks/tracking/backend.py", "tasks/tracking/database.py", "tasks/tracking/processes.py"),
    *("mgaa/boundary.py", "mgaa/errors.py", "mgaa/masking.py", "mgaa/methods.py", "mgaa/blocks/memory.py"),
    *("mgaa/checkpoints/output_folder.py", "mgaa/checkpoints/ownership.py"),
)


@dataclass(frozen=True)
class Project:
    """A copy of the machinery with small steps (tests/support/project), to be run in separate processes, and broken."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start `python` with these words in the project, with its streams as pipes."""
        pipe = subprocess.PIPE
        variables = {**os.environ, "PREFECT_HOME": str(self.root / ".prefect"), **self.environment, **environment}
        command = [sys.executable, *words]
        return subprocess.Popen(command, cwd=self.root, env=variables, text=True, stdin=pipe, stdout=pipe, stderr=pipe)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Start `python` and wait for its end."""
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def executed(self) -> list[str]:
        """Steps whose bodies ran since the last call."""
        log = self.root / "executed.log"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def contents(self) -> list[str]:
        """Files and folders of the store two levels deep, without locks."""
        return sorted(
            str(path.relative_to(self.root)) for path in self.root.glob("store/*/*") if path.suffix != ".lock"
        )


def copy_project(root: Path) -> Project:
    """Copy the machinery of the repository around the small steps of tests/support/project."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests" / "support" / "project", root, ignore=ignored)
    for folder in ("tasks/cache", "tasks/config", "flows/command", *METHODS):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    return Project(root)
