"""References: one word each for everything that can be audited, resolved to an artifact.

    models/compressed            a checkpoint, or any folder with a manifest.json or a record.json
    ranks/4c1d02a9               an artifact of the store, by kind and the beginning of its digest
    metric:perplexity/mgaa       a number of the last run, by its name in MLflow
    mlflow:<run id>              a run in MLflow
    dvc:<revision>               the run that DVC has for a git revision
    last                         the last run: results/record.json
    last:<flow>                  the last run of another flow, such as last:sweep: results/sweep.record.json

All are found offline, except `mlflow:` with a server. A revision of DVC names its record by MD5 in `dvc.lock`; the store knows its own
records by MD5 too, so neither DVC's cache nor a remote is needed.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mgaa.errors import InputError, UsageError
from tasks.audit.dvc_lock import read_stages
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import MANIFEST, RECORD, read_manifest
from tasks.config.parameters import PathSections
from tasks.record.lineage import node_of
from tasks.record.run_record import KIND, digest_of, keys_of, md5, parse_record, place_of, read_record

STAGES = {
    "ratio": "ratios",
    "slack": "ranks",
    "rank": "ranks",
    "width": "ranks",
    "energy": "ranks",
    "questions": "answers",
}
"""Stage that a metric of MLflow comes from, if it is not `metrics`."""
FORMS = "expected a folder with a manifest or record, kind/digest, metric:<name>, mlflow:<run>, dvc:<revision> or last"


def resolve_target(params: PathSections, store: Store, word: str) -> Artifact:
    """Find the artifact that a reference names.

    Raises:
        UsageError: the word has no known form.
        InputError: nothing has that name, or several things have it.
    """
    form, colon, rest = word.partition(":")
    if colon and form in (ways := {"metric": of_metric, "mlflow": of_mlflow, "dvc": of_revision, "last": of_flow}):
        return ways[form](params, store, rest)
    if word == "last":
        return of_record(params.results / RECORD)
    if (folder := params.folder / word).is_dir() or Path(word).is_dir():
        return of_folder(folder if folder.is_dir() else Path(word))
    if re.fullmatch(r"[a-z][a-z_]*/[0-9a-f]+", word):
        return of_digest(store, *word.split("/"))
    raise UsageError(f"{word!r} names nothing that has a lineage: {FORMS}.")


def derivation(store: Store, root: Artifact) -> dict[Artifact, str]:
    """Cache keys by which the latest run that used `root` obtained it and its ancestors; empty if no run did."""
    run = root if root.kind == KIND else next(runs_with(store, root), None)
    return {} if run is None else keys_of(read_record(store, run))


def run_of(store: Store, root: Artifact) -> Artifact:
    """Latest run that used `root`; raises `InputError` if none did."""
    run = root if root.kind == KIND else next(runs_with(store, root), None)
    if run is None:
        raise InputError(f"No run of {store.path} had {root}, expected one: name a run, such as last or mlflow:<run>.")
    return run


def runs_with(store: Store, artifact: Artifact) -> Iterator[Artifact]:
    """List the runs that used an artifact, the latest first."""
    nodes = [node_of(store, run) for run in artifacts(store, KIND)]
    for node in sorted(nodes, key=lambda each: each.manifest.get("end", ""), reverse=True):
        if artifact in node.all_inputs:
            yield node.artifact


def of_flow(params: PathSections, store: Store, flow: str) -> Artifact:
    """Last run of a flow."""
    return of_record(place_of(params.results, flow))


def of_folder(folder: Path) -> Artifact:
    """Artifact that was exported to a folder, or the run that published its results there."""
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        return Artifact(manifest["kind"], manifest["digest"])
    return of_record(folder / RECORD)


def of_record(path: Path) -> Artifact:
    """Run that a published record belongs to; its digest follows from the bytes of the file."""
    try:
        return digest_of(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"There is no {path} ({error.strerror}): expected the record of a run; make one with `python -m flows.compress`, or fetch it "
            "with `dvc pull`."
        ) from error


def of_digest(store: Store, kind: str, start: str) -> Artifact:
    """Artifact whose digest begins with `start`."""
    matches = [artifact for artifact in artifacts(store, kind) if artifact.digest.startswith(start)]
    if len(matches) != 1:
        raise InputError(
            f"{len(matches)} artifacts of {store.path} begin with {kind}/{start}, expected one: give more of the digest, or look with "
            "`python -m flows.store list`."
        )
    return matches[0]


def of_metric(params: PathSections, store: Store, name: str) -> Artifact:
    """Artifact of the last run that a number comes from."""
    parts = name.split("/")
    made: dict[str, list[str]] = read_record_file(params.results / RECORD)["artifacts"]
    stage = STAGES.get(parts[0], "metrics")
    kinds = [f"{stage}.{part}" for part in parts[1:2]] if parts[0] != "cosine" else ["statistics"]
    matches = [each for kind in kinds for each in made.get(kind, [])]
    if len(matches) != 1:
        models = sorted({stage.partition(".")[2] for stage in made if stage.startswith("metrics.")})
        raise InputError(
            f"The last run has no number {name!r}, expected <metric>/<model> with a model of {', '.join(models)}, such as "
            "metric:perplexity/dense."
        )
    return Artifact(*matches[0].split("/"))


def of_mlflow(params: PathSections, store: Store, run: str) -> Artifact:
    """Record that a run in MLflow is tagged with."""
    from tasks.tracking.backend import tags_of

    tags = tags_of(params.tracking_uri, run)
    if "run.record" not in tags:
        raise InputError(
            f"The run {run} of MLflow has no tag run.record: expected a run of flows.compress that finished."
        )
    return Artifact(KIND, tags["run.record"])


def of_revision(params: PathSections, store: Store, revision: str) -> Artifact:
    """Run whose record `dvc.lock` names at a git revision; of several (one for each case), the one in the results of `params.yaml`."""
    hashes = {
        out["md5"] for out in records_of(params.folder, revision) if out["path"] == f"{params.output.results}/{RECORD}"
    }
    for run in artifacts(store, KIND):
        if md5((store.folder(run) / RECORD).read_bytes()) in hashes:
            return run
    raise InputError(
        f"No run of {store.path} is that of dvc:{revision} ({', '.join(hashes) or 'its dvc.lock names no record'}), expected one: fetch it "
        "with `python -m flows.store pull`, or make it with `dvc repro` there."
    )


def records_of(folder: Path, revision: str) -> Iterator[dict[str, Any]]:
    """List the outs of `dvc.lock` at a revision that are records of runs."""
    done = subprocess.run(
        ["git", "-C", str(folder), "show", f"{revision}:./dvc.lock"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(
            f"git has no dvc.lock at {revision!r} ({done.stderr.strip()}): expected a revision of this repository with one."
        )
    for stage in read_stages(done.stdout.encode(), f"dvc.lock of {revision}").values():
        yield from (out for out in stage.get("outs", []) if Path(out["path"]).name == RECORD)


def artifacts(store: Store, kind: str = "*") -> Iterator[Artifact]:
    """List the artifacts that have a folder in the store, sound or not."""
    for folder in sorted(store.path.glob(f"{kind}/{'?' * 64}")):
        if re.fullmatch("[0-9a-f]{64}", folder.name) and re.fullmatch("[a-z][a-z_]*", folder.parent.name):
            yield Artifact(folder.parent.name, folder.name)


def read_record_file(path: Path) -> dict[str, Any]:
    """Read a published record."""
    of_record(path)
    return parse_record(path.read_bytes(), path)
