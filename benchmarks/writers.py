"""Concurrent writers: processes that share one store and one MLflow server over HTTP, and a check afterwards that nothing was lost.

    python benchmarks/writers.py [--writers 20] [--steps 5]

Every process computes steps that all of them want (one result under one key) and steps of its own, some of them with content that all have
in common, and records a run with parameters, metrics, a curve, a data file, children and a registered checkpoint. All start together at a
barrier. Then everything is read back: each run of each process, each artifact by its hashes, each key.
"""

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="writers-"))
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tasks.cache.artifact import Artifact, Store  # noqa: E402
from tasks.cache.step import step  # noqa: E402
from tasks.config.parameters import load_parameters  # noqa: E402
from tasks.tracking.registration import DIGEST, FOLDER, MODEL, register  # noqa: E402
from tasks.tracking.run import track_run  # noqa: E402

METRICS, POINTS, CHILDREN = 200, 50, 3
MODEL_NAME = "writers"


@step(kind="content")
def write(out: Path, store: Store, *, who: int, what: int) -> None:
    """Write a result; `who` enters the key, and the content only if it is not negative."""
    (out / "content.bin").write_bytes(json.dumps([max(who, -1), what]).encode() * 2000)


@step(kind="sums")
def add(out: Path, store: Store, parts: list[Artifact]) -> None:
    """Write a result that is made from several."""
    (out / "sum.txt").write_text(str(sum((store.folder(part) / "content.bin").stat().st_size for part in parts)))


def writer(number: int, folder: Path, uri: str, steps: int, barrier: Any) -> None:
    """Run one process."""
    params = load_parameters(
        ROOT / "params.yaml", [f"tracking.uri={uri}", "tracking.experiment=writers", f"store.path={folder / 'store'}"]
    )
    store = Store(params.store_path)
    barrier.wait()
    with track_run(params, title=f"writer {number}") as run:
        common = [write.fn(store, who=-1, what=what) for what in range(steps)]
        equal = [write.fn(store, who=-2 - number, what=what) for what in range(steps)]
        own = [write.fn(store, who=number, what=what) for what in range(steps)]
        total = add.fn(store, [*common, *equal, *own])
        run.log_metrics({f"metric/{index}": float(index + number) for index in range(METRICS)})
        run.log_curve(
            {"points": [{"step": s, "training": 1.0 / (s + 1), "validation": None, "rate": 0.1} for s in range(POINTS)]}
        )
        run.set_tags({"total": total.digest})
        for child in range(CHILDREN):
            run.log_child(f"child {child}", {"child": child}, {"nll": float(number)}, seconds=0.1, error=None)
        run.client.log_artifacts(run.id, str(store.folder(total)), FOLDER)
        run.set_tags({MODEL: MODEL_NAME, DIGEST: total.digest})
        register(run.client, run.id)


def counted(folder: Path, uri: str, writers: int) -> dict[str, Any]:
    """Count what is there afterwards."""
    from mlflow import MlflowClient

    client, store = MlflowClient(uri), Store(folder / "store")
    runs = client.search_runs([client.get_experiment_by_name("writers").experiment_id], max_results=10_000)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    keys = [json.loads(path.read_bytes()) for path in store.path.glob("keys/*.json")]
    artifacts = {Artifact(key["kind"], key["digest"]) for key in keys}
    versions = client.search_model_versions(f"name = '{MODEL_NAME}'")
    return {
        "runs": len(parents),
        "finished": sum(run.info.status == "FINISHED" for run in runs),
        "children": len(runs) - len(parents),
        "parameters": sum(len(run.data.params) for run in parents),
        "metrics": sum(sum(key.startswith("metric/") for key in run.data.metrics) for run in parents),
        "points": sum(len(client.get_metric_history(run.info.run_id, "recovery/training")) for run in parents),
        "files": sum(len(client.list_artifacts(run.info.run_id, FOLDER)) for run in parents),
        "totals": sum(store.is_sound(Artifact("sums", run.data.tags["total"])) for run in parents),
        "versions": len({version.version for version in versions}),
        "candidate": client.get_model_version_by_alias(MODEL_NAME, "candidate").version,
        "keys": len(keys),
        "by_task": dict(Counter(key["stage"]["task"] for key in keys)),
        "artifacts": len(artifacts),
        "sound": sum(store.is_sound(artifact) for artifact in artifacts),
        "quarantined": len([*store.path.glob("quarantine/*")]),
        "temporary": len([*store.path.glob("*/.tmp-*")]),
    }


def expected(writers: int, steps: int) -> dict[str, Any]:
    """Counts that are expected; artifacts of common content are one, the keys to them many."""
    keys = {"write": steps + 2 * writers * steps, "add": writers}
    return {
        "runs": writers,
        "finished": writers * (1 + CHILDREN),
        "children": writers * CHILDREN,
        "parameters": writers * len(load_parameters(ROOT / "params.yaml").flat()),
        "metrics": writers * METRICS,
        "points": writers * POINTS,
        "files": writers * 2,
        "totals": writers,
        "versions": writers,
        "keys": sum(keys.values()),
        "by_task": keys,
        "quarantined": 0,
        "temporary": 0,
    }


def serve(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """Start an MLflow server and wait until it listens."""
    command = [
        Path(sys.executable).with_name("mlflow"),
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    own = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=own, stdout=quiet, stderr=quiet)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)


def main() -> int:
    """Run the writers, count, and report what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--writers", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        server = serve(Path(name), port)
        try:
            uri, forked = f"http://127.0.0.1:{port}", multiprocessing.get_context("fork")
            barrier = forked.Barrier(given.writers + 1)
            shared = Path(name), uri, given.steps, barrier
            processes = [forked.Process(target=writer, args=(number, *shared)) for number in range(given.writers)]
            for process in processes:
                process.start()
            barrier.wait()
            began = time.perf_counter()
            for process in processes:
                process.join()
            seconds, codes = time.perf_counter() - began, [process.exitcode for process in processes]
            found, wanted = counted(Path(name), uri, given.writers), expected(given.writers, given.steps)
        finally:
            server.terminate()
            server.wait()
    missing = {key: [found[key], value] for key, value in wanted.items() if found[key] != value}
    lost = bool(missing) or any(codes) or found["sound"] != found["artifacts"]
    print(
        json.dumps(
            {
                "writers": given.writers,
                "seconds": round(seconds, 1),
                "exit codes": codes,
                **found,
                "missing": missing,
                "lost": lost,
            },
            indent=1,
        )
    )
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
