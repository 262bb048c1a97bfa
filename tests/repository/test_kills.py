"""A kill at a random moment of a first run breaks nothing (the benchmark with few of them)."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).resolve().parents[2]


def test_the_run_after_a_kill_leaves_what_an_undisturbed_one_leaves() -> None:
    command = [sys.executable, "benchmarks/kills.py", "--kills", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills, 0 with a difference" in done.stdout
