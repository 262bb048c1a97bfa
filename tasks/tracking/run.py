"""One MLflow run per run of a flow, opened before anything is computed and closed whatever happens.

    with track_run(parameters) as run:    # refuses a store that cannot be written, within seconds
        ...hours...
        run.log(results, published)       # metrics in one batch, lineage, data sets, files

An exception, Ctrl-C or SIGTERM (which Prefect and the command turn into exceptions) ends the run as failed, with the one-line message
in the tag `error`. Only `MlflowClient` is used, never the fluent interface, whose active run is shared by all threads.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgaa.errors import MgaaError
from mgaa.masking import masked
from tasks.artifacts.files import CARD, CURVE, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import Execution
from tasks.cache.remote import remote_of
from tasks.config.parameters import Parameters
from tasks.record.lineage import describe_lineage, run_facts
from tasks.record.run_record import NUMBERS, Span, artifacts_of, keep_record, keys_of, parse_record, place_of, user_name
from tasks.results.publish import Effort, Results
from tasks.results.report import PAGE
from tasks.tracking.backend import (
    connect,
    log_all,
    one_line,
    run_uninterrupted,
    translate_store_errors,
)
from tasks.tracking.buffer import deliver, recording_uri
from tasks.tracking.processes import fail_orphaned_runs, process_tags
from tasks.tracking.registration import DIGEST, FOLDER, MODEL, register
from tasks.tracking.values import format_value, legal_name, measurements, metrics_of, params_of, points_of, truncate

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """An open run in MLflow."""

    client: "MlflowClient"
    experiment: str
    id: str
    parameters: Parameters
    uri: str
    command: str
    """Name of the flow."""
    began: tuple[int, float]
    """Start of the run: milliseconds since 1970, and seconds of a monotonic clock."""

    def write(self, record: Callable[[], None]) -> None:
        """Record something in full, even if an interrupt arrives.

        Raises:
            ResourceError: the store cannot be reached or written.
        """
        with translate_store_errors(self.uri):
            run_uninterrupted(record)

    def now(self) -> int:
        """Milliseconds since 1970, never before the start of the run even if the clock was set back."""
        calendar, clock = self.began
        return calendar + int(1000 * (time.perf_counter() - clock))

    def log(self, results: Results, published: Mapping[str, Any], record: Artifact) -> None:
        """Record the artifacts of a finished run.

        Args:
            published: content of `results/{metrics,allocation}.json` by name.
            record: of the run (tasks/record/run_record.py).
        """
        p, folder = self.parameters, self.parameters.results
        store = Store(p.store_path, p.store.lock_timeout, remote_of(p.store.remote))

        def write() -> None:
            self.log_metrics(measurements(published["metrics"], published["allocation"]))
            self.log_record(store, record)
            self.log_texts(store, results.tokens)
            self.client.log_dict(self.id, published["metrics"]["card"], "evaluation_card.json")
            final = results.models[[*results.models][-1]]
            if final.untuned:
                self.log_curve(read_table(store, final.checkpoint, CURVE))
            if final.searched:
                self.log_files("search", sorted(folder.glob("search/*")))
            self.log_files("results", [folder / name for name in NUMBERS])
            self.log_files("report", [folder / PAGE])
            self.log_files("figures", [*sorted(folder.glob("figures/*.png")), *sorted(folder.glob("figures/*.svg"))])
            if p.registry.model is not None:
                self.offer(p.registry.model, final.checkpoint)

        self.write(write)

    def log_study(
        self,
        store: Store,
        *,
        artifacts: Mapping[str, Artifact | list[Artifact]],
        tokens: Mapping[str, Artifact],
        numbers: Mapping[str, float],
        effort: Effort,
        executions: Iterable[Execution],
        places: Sequence[Path],
    ) -> None:
        """Seal and record the results of a flow that has measured many models and published its files.

        Args:
            places: the published files, or one folder.
        """
        start = datetime.fromtimestamp(self.began[0] / 1000, UTC)
        values = {**numbers, **{f"run/{name}": value for name, value in asdict(effort).items()}}
        made: dict[str, Any] = {"artifacts": artifacts, "executions": executions, "places": places, "numbers": values}
        record = keep_record(self.parameters, store, self.command, spent=Span(start, effort.wall_seconds), **made)

        def write() -> None:
            self.log_metrics(values)
            self.log_record(store, record)
            self.log_texts(store, tokens)
            for place in places:
                files = sorted(place.glob("*")) if place.is_dir() else [place]
                self.log_files(place.name if place.is_dir() else "results", files)

        self.write(write)

    def log_record(self, store: Store, record: Artifact) -> None:
        """Record the digest of the run's record, and the lineage of everything that it names."""
        path = place_of(self.parameters.results, self.command)
        content = parse_record(path.read_bytes(), path)
        self.log_lineage(store, artifacts_of(content), keys_of(content))
        self.set_tags({"run.record": record.digest})
        self.log_files("results", [path])

    def offer(self, model: str, checkpoint: Artifact) -> None:
        """Attach the exported checkpoint to the run and register it; a buffered run is registered when it is uploaded."""
        folder = self.parameters.folder / self.parameters.output.checkpoint
        self.client.log_artifacts(self.id, str(folder), FOLDER)
        self.set_tags({MODEL: model, DIGEST: checkpoint.digest})
        if self.parameters.tracking.unreachable == "stop":
            register(self.client, self.id)

    def log_files(self, folder: str, paths: Iterable[Path]) -> None:
        """Attach files to the run, in a folder of its artifacts."""
        for path in paths:
            self.client.log_artifact(self.id, str(path), folder)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Log all values in as few calls as MLflow allows."""
        log_all(self.client, self.id, metrics=metrics_of(values))

    def log_curve(self, curve: Mapping[str, Any]) -> None:
        """Log the losses and the learning rate of a recovery, by optimizer step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, step, value in points_of(curve)]
        log_all(self.client, self.id, metrics=metrics)

    def log_child(
        self,
        name: str,
        given: Mapping[str, Any],
        measured: Mapping[str, float],
        *,
        seconds: float,
        error: BaseException | None,
    ) -> None:
        """Record a part of this run that has ended, such as a point of a sweep, as a child run.

        Args:
            given, measured: its parameters and metrics, at most as many as MLflow accepts in one call.
            seconds: duration.
            error: cause of its failure, if it failed.
        """
        ended = int(1000 * time.time())
        tags = {"mlflow.parentRunId": self.id, **process_tags()}
        if error is not None:
            tags["error"] = truncate(masked(explain_error(error)))

        def write() -> None:
            child = self.client.create_run(self.experiment, ended - int(1000 * seconds), tags, name).info.run_id
            self.client.log_batch(child, metrics_of(measured), params_of(given))
            self.client.set_terminated(child, "FINISHED" if error is None else "FAILED", ended)

        self.write(write)

    def log_lineage(
        self,
        store: Store,
        artifacts: Mapping[str, Artifact | list[Artifact]],
        keys: Mapping[Artifact, str] | None = None,
    ) -> None:
        """Record digests by stage as tags, and all ancestors as `lineage.json`; `keys` as in `tasks.record.lineage.ancestry`."""
        given = {stage: [each] if isinstance(each, Artifact) else each for stage, each in artifacts.items()}
        short = {f"artifact.{stage}": " ".join(each.digest[:12] for each in those) for stage, those in given.items()}
        self.set_tags(short | run_facts())
        lineage = describe_lineage(store, [each for those in given.values() for each in those], keys)
        self.client.log_dict(self.id, lineage, "lineage.json")

    def log_texts(self, store: Store, tokens: Mapping[str, Artifact]) -> None:
        """Record the sets of text as data set inputs, with their source, digest and size."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for section, artifact in tokens.items():
            given = getattr(self.parameters.data, section).model_dump(by_alias=True)
            card = read_table(store, artifact, CARD)
            source = json.dumps({"tags": {key: masked(format_value(value)) for key, value in given.items()}})
            name = f"{Path(given['source']).name}/{given['split']}"
            data = Dataset(name, card["data_digest"][:32], "code", source, profile=json.dumps(card))
            inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", section)]))
        self.client.log_inputs(self.id, inputs)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags in as few calls as MLflow allows."""
        from mlflow.entities import RunTag

        log_all(self.client, self.id, tags=[RunTag(legal_name(key), truncate(value)) for key, value in tags.items()])

    def fail(self, error: BaseException) -> None:
        """Record why the run ended; a store that is gone by now must not hide the error itself."""
        try:
            with translate_store_errors(self.uri):
                self.client.set_tag(self.id, "error", truncate(masked(explain_error(error))))
                self.client.set_terminated(self.id, "FAILED", self.now())
        except MgaaError as unrecorded:
            logger.warning("The run %s stays open in MLflow: %s", self.id, unrecorded)


@contextmanager
def track_run(parameters: Parameters, command: str = "compress", title: str | None = None) -> Iterator[Run]:
    """Keep a run open inside the block.

    Args:
        command: name of the flow.
        title: name of the run; by default backbone, method and compression.

    Raises:
        UsageError: `tracking.uri` has no known form, or the experiment was deleted.
        ResourceError: the tracking store cannot be reached or written.
    """
    reached, uri = deliver(parameters), recording_uri(parameters)
    with translate_store_errors(uri):
        run = start_run(parameters, command, title, uri)
    try:
        if reached:
            deliver(parameters)
        yield run
    except BaseException as error:  # raised again: Ctrl-C and SIGTERM are recorded as well
        run.fail(error)
        raise
    else:
        with translate_store_errors(uri):
            run.client.set_terminated(run.id, end_time=run.now())
    finally:
        deliver(parameters)


def start_run(parameters: Parameters, command: str, title: str | None, uri: str) -> Run:
    """Open the run in the store `uri`, with its parameters and the facts of its origin."""
    client, experiment = connect(parameters, uri)
    fail_orphaned_runs(client, experiment)
    facts = run_facts()
    standard = {
        "source.name": f"python -m flows.{command}",
        "source.type": "LOCAL",
        "user": user_name(),
        "source.git.commit": facts.get("git.commit", ""),
    }
    tags = {f"mlflow.{key}": value for key, value in standard.items() if value} | facts | process_tags()
    name = title or f"{Path(parameters.backbone.source).name} {parameters.method} {parameters.ratios.compression:g}"
    began = int(1000 * time.time()), time.perf_counter()
    opened = client.create_run(experiment, began[0], tags, name)
    run = Run(client, experiment, opened.info.run_id, parameters, uri, command, began)
    flat = {key: format_value(value) for key, value in parameters.flat().items()}
    log_all(client, run.id, params=params_of(flat))
    client.log_dict(run.id, flat, "parameters.json")
    return run


def explain_error(error: BaseException) -> str:
    """Reason why a run ended, in one line."""
    if not isinstance(error, Exception):
        return f"interrupted ({type(error).__name__})"
    return one_line(error) if isinstance(error, MgaaError) else f"{type(error).__name__}: {one_line(error)}"
