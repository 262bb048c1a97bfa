"""Cost of the pipeline on this machine: a first run, an identical second one, and another target, in a fresh store.

    python benchmarks/pipeline.py [section.key=value ...]

Prints, for each: seconds of the whole command, seconds of the flow (after Prefect's server has started), seconds in which a step was at
work (and of these
the evaluation of models), the orchestration overhead (flow - work) / work, steps executed and reused, and peak memory. Everything goes to a
temporary
folder; the runs use the checkout's `models/demo` and packages.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path, *overrides: str) -> dict[str, float]:
    """Run `python -m flows.compress` once in `folder`."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "flows.compress", *overrides]
    environment = {**os.environ, "PREFECT_HOME": str(folder / ".prefect")}
    subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    effort = json.loads((folder / "results" / "metrics.json").read_text())["run"]
    return {"command": time.perf_counter() - began, **effort}


def main() -> None:
    """Read the command line, run, print."""
    given = sys.argv[1:]
    print(
        "| run | command s | flow s | work s | of it evaluation s | overhead | executed | reused | peak GB |\n|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("flows", "tasks", "mgaa", "demo", "models"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("compressed", "__pycache__"))
        shutil.copy(ROOT / "params.yaml", folder)
        for label, overrides in (("first", []), ("identical", []), ("another target", ["ratios.compression=0.3"])):
            cost = run(folder, *given, *overrides)
            work = cost["work_seconds"]
            overhead = f"{(cost['wall_seconds'] - work) / work:.0%}" if cost["executed"] else "-"
            print(
                f"| {label} | {cost['command']:.1f} | {cost['wall_seconds']:.1f} | {work:.1f} | {cost['evaluate_seconds']:.1f} | {overhead} | "
                f"{cost['executed']} | {cost['reused']} | {cost['peak_memory_bytes'] / 1e9:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
