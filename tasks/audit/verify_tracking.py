"""A run's record against its run in MLflow: tags, parameters, every point of every metric, files, status, and registered versions.

Numbers are compared with the results that MLflow keeps itself, whose sha256 is in the record; so an old run is compared as thoroughly as
the last. What others may add by hand (tags, notes, aliases) is left alone; they may not add metrics, parameters, or files to a checkpoint.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from mgaa.errors import MgaaError
from mgaa.masking import masked
from tasks.artifacts.files import CURVE
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import digest as digest_of
from tasks.cache.manifest import file_digest, format_json
from tasks.config.parameters import PathSections
from tasks.record.findings import Finding, compare_values, disagreement, unchecked
from tasks.record.run_record import artifacts_of, place_of
from tasks.results.report import PAGE
from tasks.tracking.backend import SQLITE, check_reachable, translate_store_errors
from tasks.tracking.registration import DIGEST, FOLDER, MODEL
from tasks.tracking.registration import RECORD as TAG
from tasks.tracking.values import format_value, legal_name, measurements, params_of, points_of, truncate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

WHOSE = "the record of the run"


def verify_tracking(params: PathSections, store: Store, run: Artifact, record: Mapping[str, Any]) -> Iterator[Finding]:
    """Check everything that MLflow has of the run."""
    from mlflow import MlflowClient

    if not record.get("in_mlflow", True):
        return
    uri = params.tracking_uri
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        yield unchecked("MLflow", f"{masked(uri)} is not there")
        return
    try:
        with translate_store_errors(uri):
            check_reachable(uri)
            client = MlflowClient(uri)
            tracked = run_of(client, params.tracking.experiment, run)
            if tracked is None:
                yield disagreement("MLflow", f"has no run with the tag run.record of {run} in {masked(uri)}")
                return
            with TemporaryDirectory() as folder:
                yield from TrackedRun(client, tracked, store, record, Path(folder)).findings()
    except MgaaError as error:
        yield unchecked("MLflow", str(error))


def run_of(client: "MlflowClient", experiment: str, run: Artifact) -> "Run | None":
    """Find the run of MLflow that is tagged with a record, in the experiment of the parameters."""
    known = client.get_experiment_by_name(experiment)
    ids = [known.experiment_id] if known else []
    runs = client.search_runs(ids, f"tags.`run.record` = '{run.digest}'") if ids else []
    return runs[0] if runs else None


@dataclass(frozen=True)
class TrackedRun:
    """A run of MLflow, and the record that it is compared with.

    Attributes:
        folder: an empty folder for files downloaded from a server.
    """

    client: "MlflowClient"
    run: "Run"
    store: Store
    record: Mapping[str, Any]
    folder: Path

    def findings(self) -> Iterator[Finding]:
        """Report everything in which the two differ."""
        yield from self.state()
        yield from self.tags()
        yield from self.parameters()
        files = self.files()
        yield from self.kept_files(files)
        yield from self.metrics(files)
        yield from self.registered()

    def state(self) -> Iterator[Finding]:
        """Check status and user."""
        info = self.run.info
        yield from compare_values("MLflow, status", info.status, "FINISHED", WHOSE)
        if "user" in self.record:
            yield from compare_values("MLflow, user", info.user_id, self.record["user"], WHOSE)
            yield from compare_values(
                "MLflow, tag mlflow.user", self.run.data.tags.get("mlflow.user"), self.record["user"], WHOSE
            )

    def tags(self) -> Iterator[Finding]:
        """Check the digests by stage, and the facts that the process recorded of its run."""
        short = {
            f"artifact.{stage}": " ".join(each.partition("/")[2][:12] for each in made)
            for stage, made in self.record["artifacts"].items()
        }
        for tag, value in (short | self.record["tags"]).items():
            yield from compare_values(
                f"MLflow, tag {tag}", self.run.data.tags.get(legal_name(tag)), truncate(value), WHOSE
            )

    def parameters(self) -> Iterator[Finding]:
        """Check that the run has every parameter, and no other."""
        expected = {each.key: each.value for each in params_of(self.record["parameters"])}
        for key in dict.fromkeys([*expected, *self.run.data.params]):
            yield from compare_values(
                f"MLflow, parameter {key}", self.run.data.params.get(key), expected.get(key), WHOSE
            )

    def files(self) -> Path:
        """Folder of the files of the run; those on a server are downloaded."""
        uri = urlparse(self.run.info.artifact_uri)
        if uri.scheme in ("", "file"):
            return Path(unquote(uri.path))
        for top in self.client.list_artifacts(self.run.info.run_id):
            self.client.download_artifacts(self.run.info.run_id, top.path, str(self.folder))
        return self.folder

    def kept_files(self, files: Path) -> Iterator[Finding]:
        """Check that the run has every file, and no other in the folders that are ours."""
        expected, texts = self.published(), self.texts(files)
        for path, digest in expected.items():
            place = files / path
            if not place.is_file():
                yield disagreement(f"MLflow, {path}", f"is missing, {WHOSE} names it")
            elif file_digest(place, place.stat()) != digest:
                yield disagreement(f"MLflow, {path}", f"was altered: its sha256 is not the {digest[:12]}... of {WHOSE}")
        for path, content in texts.items():
            if read_json(files / path) != content:
                yield disagreement(f"MLflow, {path}", f"was altered: its content is not that of {WHOSE}")
        lineage = read_json(files / "lineage.json")
        if "lineage" in self.record and (lineage is None or digest_of(lineage) != self.record["lineage"]):
            yield disagreement("MLflow, lineage.json", f"was altered: it is not the lineage of {WHOSE}")
        ours = {PurePosixPath(path).parts[0] for path in expected} | {FOLDER}
        for place in sorted(each for each in files.rglob("*") if each.is_file()):
            path = place.relative_to(files).as_posix()
            if path not in expected and path.partition("/")[0] in ours - {*texts} and "lineage" in self.record:
                yield disagreement(f"MLflow, {path}", f"was added: {WHOSE} does not name it")

    def published(self) -> dict[str, str]:
        """sha256 of the files that the run keeps in MLflow, by their path there."""
        given, results = self.record["parameters"], PurePosixPath(self.record["parameters"]["output.results"])
        digests = {
            f"results/{place_of(Path(), self.record['flow'])}": hashlib.sha256(format_json(self.record)).hexdigest()
        }
        for name, digest in self.record["published"].items():
            path = PurePosixPath(name)
            if path.is_relative_to(results):
                inner = path.relative_to(results)
                if kept := place_in_mlflow(inner):
                    digests[kept] = digest
            elif MODEL in self.run.data.tags and path.is_relative_to(given["output.checkpoint"]):
                digests[f"{FOLDER}/{path.relative_to(given['output.checkpoint'])}"] = digest
        return digests

    def texts(self, files: Path) -> dict[str, Any]:
        """Expected content of the JSON files that MLflow keeps of the run, by their path there."""
        flat = {key: format_value(value) for key, value in self.record["parameters"].items()}
        expected: dict[str, Any] = {"parameters.json": flat}
        if (metrics := self.read_intact(files, "results/metrics.json")) is not None:
            expected["evaluation_card.json"] = metrics.get("card")
        return expected

    def metrics(self, files: Path) -> Iterator[Finding]:
        """Check that the run has every point of every metric, and no other; the results that they come from were compared as files."""
        metrics, allocation = (self.read_intact(files, f"results/{name}.json") for name in ("metrics", "allocation"))
        numbers = self.record.get("numbers")
        if numbers is None and (metrics is None or allocation is None):
            return
        numbers = measurements(metrics, allocation) if numbers is None else numbers
        expected = {legal_name(name): [(0, float(value))] for name, value in numbers.items()}
        expected |= self.curve()
        latest = self.run.data.metrics
        for key in dict.fromkeys([*expected, *latest]):
            if key not in expected:
                yield disagreement(f"MLflow, metric {key}", f"was added: {WHOSE} has no such number")
                continue
            points = self.client.get_metric_history(self.run.info.run_id, key)
            found = sorted((each.step, each.value) for each in points)
            if str(found) != str(expected[key]):  # as text, in which nan equals nan
                yield from compare_values(
                    f"MLflow, metric {key}", format_points(found), format_points(expected[key]), WHOSE
                )
            elif str(latest.get(key)) != str(found[-1][1]):
                yield from compare_values(f"MLflow, metric {key}", latest.get(key), found[-1][1], "its own history")

    def read_intact(self, files: Path, path: str) -> Any:
        """Read a JSON file that is as the run published it; None for any other, which has been reported already."""
        place, expected = files / path, self.published().get(path)
        sound = place.is_file() and file_digest(place, place.stat()) == expected
        return read_json(place) if sound else None

    def curve(self) -> dict[str, list[tuple[int, float]]]:
        """Points of a recovery, which are stored with its checkpoint."""
        paths = [self.store.path_of(each) / CURVE for each in self.checkpoints()]
        points: dict[str, list[tuple[int, float]]] = {}
        for path in (each for each in paths if each.is_file()):
            for name, step, value in points_of(read_json(path) or {}):
                points.setdefault(name, []).append((step, value))
        return points

    def checkpoints(self) -> list[Artifact]:
        """Checkpoints of the run."""
        return [
            each
            for stage, made in artifacts_of(self.record).items()
            if stage.startswith("checkpoint.")
            for each in made
        ]

    def registered(self) -> Iterator[Finding]:
        """Check the versions of a registered model that were made from the run."""
        tags, info = self.run.data.tags, self.run.info
        if MODEL not in tags:
            return
        for version in self.client.search_model_versions(f"run_id = '{info.run_id}'"):
            where = f"MLflow, {version.name} version {version.version}"
            yield from compare_values(f"{where}, source", version.source, f"{info.artifact_uri}/{FOLDER}", "its run")
            for key in (DIGEST, TAG):
                yield from compare_values(f"{where}, tag {key}", version.tags.get(key), tags.get(key), "its run")
        yield from compare_values(
            "MLflow, tag registry.model", tags[MODEL], self.record["parameters"]["registry.model"], WHOSE
        )
        if tags.get(DIGEST) not in {each.digest for each in self.checkpoints()}:
            yield disagreement(f"MLflow, tag {DIGEST}", f"is {tags.get(DIGEST)}, {WHOSE} has no such checkpoint")


def place_in_mlflow(inner: PurePosixPath) -> str | None:
    """Path in MLflow of a file of the results; None for a file that is not kept there."""
    if inner.parts[0] in ("figures", "search"):
        return str(inner) if inner.suffix in (".png", ".svg") or inner.parts[0] == "search" else None
    if len(inner.parts) > 1:
        return None
    return f"report/{inner}" if inner.name == PAGE else f"results/{inner}"


def format_points(points: list[tuple[int, float]]) -> object:
    """Format the points of a metric for a finding: the value alone if there is one point, as usual."""
    return points[0][1] if len(points) == 1 and points[0][0] == 0 else points or None


def read_json(path: Path) -> Any:
    """Read a JSON file; None if it is missing or unreadable."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
