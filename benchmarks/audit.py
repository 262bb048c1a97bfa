"""Cost of an audit of a store with 1,000 artifacts: `show` in seconds, `verify` in megabytes per second and core.

    python benchmarks/audit.py [--artifacts 1000] [--megabytes 1.0]

The store consists of real artifacts in layers, each made from three of the layer before, as in a pipeline over blocks, and is in the page
cache when it is verified. The commands run in processes of their own, as a user's do; sha256 alone on the same files, on one
core, is the floor.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tasks.cache import environment, source  # noqa: E402
from tasks.cache.artifact import Artifact, Store  # noqa: E402
from tasks.cache.manifest import digest  # noqa: E402

LAYER = 40


def fill(store: Store, count: int, size: int) -> Artifact:
    """Seal and remember `count` artifacts; the last one descends from all others."""
    draw, made = random.Random(0), list[Artifact]()
    sources = source.sources("tasks.steps.decompose")
    for number in range(count):
        last = number == count - 1
        behind = made[-LAYER:] if last else draw.sample(made[-2 * LAYER :], min(3, len(made)))
        inputs = {"inputs": [{"kind": each.kind, "digest": each.digest} for each in behind]} if behind else {}
        stage = {
            "task": "decompose",
            "kind": "spectra",
            "inputs": inputs,
            "parameters": {"block": number},
            "code": "0" * 64,
        }
        times = {"start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:00:01+00:00", "seconds": 1.0, "facts": {}}
        key = digest(stage)
        with store.draft_folder("spectra") as out:
            (out / "block.safetensors").write_bytes(draw.randbytes(size))
            shared = {name: stage[name] for name in ("task", "inputs", "parameters", "code")}
            made.append(
                store.seal(out, "spectra", {**shared, "key": key, "sources": sources, **environment.origin(), **times})
            )
        store.remember(key, made[-1], stage)
    return made[-1]


def floor(store: Store) -> float:
    """Bytes per second of sha256 on one core."""
    files = [*store.path.glob("*/*/block.safetensors")]
    began, total = time.perf_counter(), 0
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
        total += path.stat().st_size
    return total / (time.perf_counter() - began)


def command(folder: Path, *words: str) -> tuple[float, str]:
    """Seconds of a command, and its output."""
    began = time.perf_counter()
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=own, capture_output=True, text=True, check=False
    )
    return time.perf_counter() - began, done.stdout or done.stderr


def main() -> None:
    """Make the store, time the commands, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=int, default=1000)
    parser.add_argument("--megabytes", type=float, default=1.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        store = Store(folder / "store")
        root = fill(store, given.artifacts, int(1e6 * given.megabytes))
        what = f"{root.kind}/{root.digest}"
        print(f"sha256 alone, one core: {floor(store) / 1e6:.0f} MB/s")
        for words in (["show", what], ["show", what, "--json"], ["verify", what]):
            seconds, said = min(command(folder, "flows.lineage", *words) for _ in range(3))
            print(f"{' '.join(words[:1] + words[2:])}: {seconds:.2f} s  ({said.strip().splitlines()[-1]})")


if __name__ == "__main__":
    main()
