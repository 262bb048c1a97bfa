"""Execution of a guide: its blocks one after another, as a reader copies them, in a project around a tiny model.

The word after a fence gives the kind of a block: `sh` are commands; `python` is run, all of a guide in one namespace, or written to a file
if the path of one follows; `text` is what the block before it prints. In `text` a number stands for any number, a
digest for any digest, a verdict (▼ ▲ ≈) for any, and `...` for anything; its lines have to be printed in their order, with any
others between them.

Commands of ours run in this process, as `python -m` runs them, others in a shell; once a file has been added to the code of the project,
all of them do.
"""

import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from prefect.settings import get_current_settings

from tests.support.laboratory import build
from tests.support.processes import ROOT

GUIDES = ROOT / "docs" / "guides"
FENCE = re.compile(r"^```(\w*) *(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = ("flows", "tasks", "mgaa", "demo")
VARYING = re.compile(r"(\.\.\.|\s+|─+|\b[0-9a-f]{8,64}\b|[+-]?\d+(?:[.,]\d+)*|[▼▲≈])")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is written to, if any, and its lines."""

    language: str
    file: str
    text: str


def blocks(document: Path) -> list[Block]:
    """Fenced blocks of a document."""
    return [Block(*found) for found in FENCE.findall(document.read_text(encoding="utf-8"))]


PLAIN = re.compile(r"python -m flows\.[^|>]*")
"""Commands of ours that need no shell."""


def commands(block: Block) -> Iterator[str]:
    """Commands of a block, each on one line."""
    yield from filter(None, block.text.replace("\\\n", " ").splitlines())


def scratch(root: Path) -> Path:
    """Make a small project in a reader's place: `models/demo` is a tiny model, the texts are a file, `docs` are ours."""
    build(root, root / "models" / "demo")
    parameters = yaml.safe_load((root / "params.yaml").read_text())
    parameters["backbone"]["source"] = "models/demo"
    parameters["evaluation"]["tasks"] = []
    parameters["profile"] |= {"repetitions": 2, "ranks": 2, "tokens": [1, 8]}
    (root / "params.yaml").write_text(yaml.safe_dump(parameters))
    for package in CODE:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@dataclass
class Reader:
    """A reader who follows a guide in a project.

    Attributes:
        elsewhere: commands that another test runs, or that never end (a server); here they are passed over.
        said: what the last block printed.
        changed: whether the code of the project is no longer ours.
    """

    project: Path
    elsewhere: Sequence[str] = ()
    said: str = ""
    changed: bool = False
    names: dict[str, Any] = field(default_factory=dict)

    def follow(self, guide: str) -> None:
        """Execute the whole guide."""
        found = blocks(GUIDES / guide)
        text = "\n".join(block.text for block in found)
        assert all(command in text for command in self.elsewhere), "no such command in the guide"
        for block in found:
            with chdir(self.project):
                self.do(block)

    def do(self, block: Block) -> None:
        """Execute one block, in the project's folder."""
        if block.file:
            self.write(block)
        elif block.language == "text":
            check(block.text, self.said)
        elif block.language == "python":
            with redirect_stdout(io.StringIO()) as said:
                exec(block.text, self.names)
            self.said = said.getvalue()
        else:
            assert block.language == "sh", f"a block of {block.language!r}: expected sh, python or text"
            self.said = "".join(map(self.run, commands(block)))

    def write(self, block: Block) -> None:
        """Write a block to the file that it names."""
        path = self.project / block.file
        path.write_text(block.text, encoding="utf-8")
        self.changed |= path.relative_to(self.project).parts[0] in CODE

    def run(self, command: str) -> str:
        """Run a command, which must succeed, and return its output."""
        if any(each in command for each in self.elsewhere):
            return ""
        if PLAIN.fullmatch(command) and not self.changed:
            return in_process(*shlex.split(command, comments=True)[2:])
        own = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.project),
            "PREFECT_API_URL": str(get_current_settings().api.url),
        }
        shell = ["bash", "-ec", command]
        done = subprocess.run(
            shell, cwd=self.project, env=os.environ | own, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout


def in_process(module: str, *words: str) -> str:
    """Output of `python -m module words`, without the seconds of a new process."""
    said, complained, code = io.StringIO(), io.StringIO(), None
    with redirect_stdout(said), redirect_stderr(complained), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'flows.*found in sys.modules", RuntimeWarning)
        with patch.object(sys, "argv", [module, *words]):
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as end:
                code = end.code
    assert not code, f"{module} {shlex.join(words)} ends with {code}: {said.getvalue()}{complained.getvalue()}"
    return said.getvalue()


def check(shown: str, said: str) -> None:
    """Check the output that a guide shows against the actual output."""
    lines = iter(said.splitlines())
    for line in filter(str.strip, shown.splitlines()):
        if line.strip() != "...":
            expected = pattern(line)
            assert any(expected.fullmatch(each) for each in lines), f"the guide shows {line!r}; there is\n{said}"


def pattern(line: str) -> re.Pattern[str]:
    """Regular expression for a line that a guide shows."""
    return re.compile(r"\s*" + "".join(map(loosely, VARYING.split(line.strip()))) + r"\s*")


def loosely(text: str) -> str:
    """Regular expression for a piece of a line."""
    if text == "...":
        return ".*"
    if text.isspace():
        return r"\s+"
    if re.fullmatch("─+", text):
        return "─+"
    if re.fullmatch("[0-9a-f]{8,64}", text):
        return "[0-9a-f]+( changed)?"  # a commit with uncommitted changes
    if re.fullmatch(r"[+-]?\d+(?:[.,]\d+)*", text):
        return r"[+-]?\d+(?:[.,]\d+)*"
    if text in ("▼", "▲", "≈"):
        return "[▼▲≈]"
    return re.escape(text)
