"""Nothing is lost where several processes write to one store and one MLflow server (the benchmark with few of them)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).resolve().parents[2]


def test_nothing_of_writers_at_once_is_lost() -> None:
    command = [sys.executable, "benchmarks/writers.py", "--writers", "4", "--steps", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["runs"], found["children"], found["points"], found["versions"], found["keys"]) == (4, 12, 200, 4, 31)
    assert found["missing"] == {}
    assert found["sound"] == found["artifacts"]
