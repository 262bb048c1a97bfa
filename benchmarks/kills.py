"""Recovery from kills at random moments of a first run: runs are killed in an empty project, and the next run must repair everything.

    python benchmarks/kills.py [--kills 50] [--seed 0] [--first 0]

Each of them starts `python -m flows.compress` in a project of its own where nothing has run yet (the tiny one of
tests/support/laboratory.py, with its own store, MLflow database and Prefect home) and kills it with SIGKILL: every even one with the
process group, as a machine that runs out of memory or a scheduler does, every odd one the process of the flow alone. Half of the moments
are uniform over the duration of an undisturbed run, half over its beginning, in which databases and folders are created. The run after it
runs to its end.

Then everything must be as after an undisturbed run: exit code 0 with nothing on stderr, the digests of all artifacts, the bytes of the
checkpoint, the numbers in MLflow. And nothing may be left over: no temporary folder, no server, no open record. One line is printed for
each kill; the exit code is 1 if any differs. The draws of a kill depend on the seed and its number alone, so `--first 20 --kills 10` is a part of what `--kills 30` does.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.laboratory import TinyProject, build  # noqa: E402

PATIENCE = 600.0
"""Seconds that a run may take."""
TIMED = ("seconds/", "run/", "generation/")
"""Prefixes of the names of numbers that are times, memory or counts of reused steps."""


@dataclass(frozen=True)
class Kill:
    """Moment of a kill, as a fraction of a part of an undisturbed run, and the target of the kill."""

    number: int
    share: float
    early: bool
    group: bool

    @classmethod
    def drawn(cls, seed: int, number: int) -> "Kill":
        """Draw the kill of this number."""
        draw = random.Random(f"{seed} {number}")
        return cls(number, draw.random(), early=number // 2 % 2 == 0, group=number % 2 == 0)


@dataclass(frozen=True)
class Whole:
    """State after an undisturbed run, and its duration: until its databases existed, and to its end."""

    outcome: dict[str, Any]
    beginning: float
    seconds: float

    def moment(self, kill: Kill) -> float:
        """Moment of a kill, in seconds from the start."""
        return kill.share * (self.beginning if kill.early else self.seconds)


def start(lab: TinyProject) -> "subprocess.Popen[str]":
    """Start a run in a process group of its own; its output goes to files, since a server that outlives it would hold a pipe."""
    command = [sys.executable, "-m", "flows.compress", f"--params={lab.root / 'params.yaml'}"]
    command += [f"tracking.uri={tracking(lab)}", "--quiet"]
    own = {**os.environ, "PREFECT_HOME": str(lab.root / ".prefect")}
    with (lab.root / "stderr").open("w") as told:
        return subprocess.Popen(
            command, cwd=ROOT, env=own, text=True, stdout=subprocess.DEVNULL, stderr=told, start_new_session=True
        )


def tracking(lab: TinyProject) -> str:
    """URI of the store in which the project's runs are recorded."""
    return f"sqlite:///{lab.root / 'mlflow.db'}"


def undisturbed(lab: TinyProject) -> Whole:
    """Run without a kill."""
    began, beginning = time.perf_counter(), None
    process = start(lab)
    while process.poll() is None:
        if beginning is None and list(lab.root.glob("store/keys/*.json")):
            beginning = time.perf_counter() - began
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    return Whole(outcome(lab, process.returncode), beginning or seconds, seconds)


def killed(lab: TinyProject, kill: Kill, after: float) -> str:
    """Kill a run; returns the state at that moment."""
    process = start(lab)
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL) if kill.group else process.kill()
    code = process.wait()
    made = [
        name
        for name in (".prefect/prefect.db", "mlflow.db", "results", "models/compressed")
        if (lab.root / name).exists()
    ]
    keys = len(list(lab.root.glob("store/keys/*.json")))
    return (
        f"{'ended' if code == 0 else 'killed'}: {', '.join(Path(name).name for name in made) or 'nothing'}, {keys} keys"
    )


def outcome(lab: TinyProject, code: int) -> dict[str, Any]:
    """Everything that must be as after an undisturbed run."""
    checkpoint = lab.root / "models" / "compressed"
    return {
        "exit code": code,
        "stderr": (lab.root / "stderr").read_text(),
        "artifacts": lab.records(),
        "checkpoint": {
            name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in sealed(checkpoint)
        },
        "results": sorted(str(path.relative_to(lab.root)) for path in lab.root.glob("results/**/*")),
        "numbers": numbers(lab),
        "temporary": sorted(str(path.relative_to(lab.root)) for path in lab.root.rglob(".tmp-*")),
        "servers": len(list(servers(lab))),
    }


def sealed(checkpoint: Path) -> list[str]:
    """Files of a checkpoint that its manifest names."""
    manifest = checkpoint / "manifest.json"
    return sorted(json.loads(manifest.read_bytes())["files"]) if manifest.exists() else []


def numbers(lab: TinyProject) -> dict[str, Any]:
    """Parameters and metrics of the last run in MLflow, and the number of open runs."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking(lab))
    experiment = client.get_experiment_by_name("mgaa")
    found = [] if experiment is None else client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    if not found:
        return {}
    last = found[0]
    return {
        "status": last.info.status,
        "open": sum(run.info.status == "RUNNING" for run in found),
        "parameters": {key: value for key, value in last.data.params.items() if key != "tracking.uri"},
        "metrics": {key: value for key, value in last.data.metrics.items() if not key.startswith(TIMED)},
    }


def servers(lab: TinyProject) -> Iterator[psutil.Process]:
    """Processes that the runs of this project have left."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == str(lab.root / ".prefect"):
                yield process
        except psutil.Error:  # another user's, or already gone
            continue


def tried(lab: TinyProject, kill: Kill, whole: Whole) -> list[str]:
    """Kill a run, run again, and compare; prints a line and returns the differences."""
    after = whole.moment(kill)
    found = killed(lab, kill, after)
    began, process = time.perf_counter(), start(lab)
    try:
        code = process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    seconds, made = time.perf_counter() - began, outcome(lab, code)
    different = [name for name, value in whole.outcome.items() if made[name] != value]
    what = "group" if kill.group else "flow"
    print(
        f"| {kill.number} | {what} | {after:.1f} | {found} | {seconds:.0f} | {', '.join(different) or 'equal'} |",
        flush=True,
    )
    for name in different:
        print(f"  {name}: {str(made[name])[-600:]}", file=sys.stderr, flush=True)
    for left in servers(lab):
        left.kill()
    return different


def main() -> int:
    """Kill as often as requested, and print the outcome."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first kill")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        empty = build(Path(name) / "empty", Path(name) / "model")
        whole = undisturbed(empty.copy(Path(name) / "whole", store=False))
        if whole.outcome["exit code"] != 0:
            print(whole.outcome["stderr"], file=sys.stderr)
            return 1
        print(f"undisturbed: {whole.seconds:.0f} s, of which {whole.beginning:.0f} s until the first result\n")
        print(
            "| kill | of | after s | what was there | next run s | what differs |\n|---|---|---|---|---|---|",
            flush=True,
        )
        wrong = 0
        for number in range(given.first, given.first + given.kills):
            lab = empty.copy(Path(name) / f"kill-{number}", store=False)
            wrong += bool(tried(lab, Kill.drawn(given.seed, number), whole))
            shutil.rmtree(lab.root, ignore_errors=True)
    print(f"\n{given.kills} kills, {wrong} with a difference")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
