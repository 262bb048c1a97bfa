"""A signal that arrives while a command imports its modules ends it as a later one does: one line, exit code 130."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

STRIKING = """
import os, signal, sys
def strike(event, arguments):
    if event == "import" and arguments[0] == "{module}":
        os.kill(os.getpid(), signal.{name})
sys.addaudithook(strike)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("module", ["tasks.config.parameters", "prefect"])
def test_a_signal_during_the_imports_is_one_line_and_130(tmp_path: Path, module: str, name: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(STRIKING.format(module=module, name=name))
    own = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.compress"], cwd=ROOT, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr == "interrupted before the first step; run the same command to start again\n"


def test_importing_flows_leaves_the_signals_as_they_are() -> None:
    code = "import signal; before = signal.getsignal(15); import flows; print(signal.getsignal(15) is before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
