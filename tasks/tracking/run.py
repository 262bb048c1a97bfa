"""One MLflow run per run of the flow, started before anything is computed and ended whatever happens.

    with tracked(parameters) as run:      # refuses a store that cannot be written, in seconds
        ...hours...
        run.log(results, published)       # metrics in one batch, lineage, data sets, files

An exception, Ctrl-C and SIGTERM (which Prefect and the command turn into exceptions) end the run as failed, with the one-line message
in the tag `error`. Only `MlflowClient` is used, never the fluent interface, whose active run all threads share.
"""

import json
import logging
import re
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
    fail_orphaned_runs,
    log_all,
    one_line,
    process_tags,
    run_uninterrupted,
    translate_store_errors,
)
from tasks.tracking.buffer import deliver, recording_uri
from tasks.tracking.registration import DIGEST, FOLDER, MODEL, register

if TYPE_CHECKING:
    from mlflow import MlflowClient

VALUE = 5000
"""Characters of a value; MLflow takes 6000 of a parameter and 8000 of a tag."""
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
    """The flow."""
    began: tuple[int, float]
    """When the run started, by the calendar in milliseconds and by a clock that nobody sets in seconds."""

    def write(self, record: Callable[[], None]) -> None:
        """Record something, whole, whatever interrupts.

        Raises:
            ResourceError: the store cannot be reached or written.
        """
        with translate_store_errors(self.uri):
            run_uninterrupted(record)

    def now(self) -> int:
        """The time since 1970 in milliseconds, which is never before the start, even where the calendar was set back."""
        calendar, clock = self.began
        return calendar + int(1000 * (time.perf_counter() - clock))

    def log(self, results: Results, published: Mapping[str, Any], record: Artifact) -> None:
        """Record the artifacts of a finished run.

        Args:
            published: the content of `results/{metrics,allocation}.json` by name.
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
        """Seal the record of a flow that has measured many models and published its files, and record its numbers with it.

        Args:
            places: the files that it has published, or one folder.
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
        """The record of the run: its digest, and the lineage of all that it names."""
        path = place_of(self.parameters.results, self.command)
        told = parse_record(path.read_bytes(), path)
        self.log_lineage(store, artifacts_of(told), keys_of(told))
        self.set_tags({"run.record": record.digest})
        self.log_files("results", [path])

    def offer(self, model: str, checkpoint: Artifact) -> None:
        """Keep the exported checkpoint with the run and register it; of a run in a buffer that is done when it is uploaded."""
        folder = self.parameters.folder / self.parameters.output.checkpoint
        self.client.log_artifacts(self.id, str(folder), FOLDER)
        self.set_tags({MODEL: model, DIGEST: checkpoint.digest})
        if self.parameters.tracking.unreachable == "stop":
            register(self.client, self.id)

    def log_files(self, folder: str, paths: Iterable[Path]) -> None:
        """Keep files with the run, in a folder of its artifacts."""
        for path in paths:
            self.client.log_artifact(self.id, str(path), folder)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """All values in as few calls as MLflow allows."""
        log_all(self.client, self.id, metrics=metrics_of(values))

    def log_curve(self, curve: Mapping[str, Any]) -> None:
        """The losses and the rate of a recovery, by optimizer step."""
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
        """Record a part of this run that has ended, such as a point of a sweep, as a run below it.

        Args:
            given, measured: its parameters and metrics, at most as many as MLflow takes at once.
            seconds: how long it took.
            error: why it failed, if it did.
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
        """Digests by stage as tags, and everything behind them as `lineage.json`; `keys` as in `tasks.record.lineage.ancestry`."""
        given = {stage: [each] if isinstance(each, Artifact) else each for stage, each in artifacts.items()}
        short = {f"artifact.{stage}": " ".join(each.digest[:12] for each in those) for stage, those in given.items()}
        self.set_tags(short | run_facts())
        behind = describe_lineage(store, [each for those in given.values() for each in those], keys)
        self.client.log_dict(self.id, behind, "lineage.json")

    def log_texts(self, store: Store, tokens: Mapping[str, Artifact]) -> None:
        """The sets of text as data set inputs, with their source, digest and size."""
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
        """Record why the run ended; that the store is gone by now must not hide the error itself."""
        try:
            with translate_store_errors(self.uri):
                self.client.set_tag(self.id, "error", truncate(masked(explain_error(error))))
                self.client.set_terminated(self.id, "FAILED", self.now())
        except MgaaError as unrecorded:
            logger.warning("The run %s stays open in MLflow: %s", self.id, unrecorded)


@contextmanager
def track_run(parameters: Parameters, command: str = "compress", title: str | None = None) -> Iterator[Run]:
    """A run that is open inside the block.

    Args:
        command: the flow.
        title: the name of the run; by default backbone, method and compression.

    Raises:
        UsageError: `tracking.uri` is of no known form, or the experiment was deleted.
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
    """Open the run in the store `uri`, with its parameters and what is known of its origin."""
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


def measurements(metrics: Mapping[str, Any], allocations: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a run by name: `perplexity/<model>`, `tasks/<model>/<task>/acc`, `ratio/<model>/<sublayer>` and so on.

    A matrix that stays dense has the rank `min(m, n)`, one of a pruned FFN a width in its place.
    """
    found = {
        f"{key.replace('_', '/')}/{name}": value
        for allocation in allocations.values()
        for name, each in allocation["sublayers"].items()
        for key, value in each.items()
        if key.startswith("cosine") and value is not None
    }
    for model, allocation in allocations.items():
        for name, each in allocation["sublayers"].items():
            found[f"ratio/{model}/{name}"] = each["ratio"]
        for each in allocation["matrices"].values():
            name = f"{model}/{each['block']}.{each['matrix']}"
            if "width" in each:
                found[f"width/{name}"] = each["width"]
            else:
                found[f"rank/{name}"] = min(each["m"], each["n"]) if each["rank"] is None else each["rank"]
            found[f"energy/{name}"] = each["energy"]
        found[f"slack/{model}"] = allocation["slack"]
    for model, entry in metrics["models"].items():
        found |= {
            f"{key}/{model}{rest}": value for key, given in entry.items() for rest, value in flatten_numbers(given)
        }
    for name, models in metrics.get("comparison", {}).items():
        found |= {
            f"above_uniform/{model}/{name}/{key}": value
            for model, each in models.items()
            for key, value in each.items()
        }
    found |= {
        f"run/{key}": value for key, given in metrics.get("run", {}).items() for _, value in flatten_numbers(given)
    }
    return {name: float(value) for name, value in found.items()}


def points_of(curve: Mapping[str, Any]) -> Iterator[tuple[str, int, float]]:
    """The points of a recovery: name of the metric, optimizer step, value."""
    for point in curve.get("points", []):
        for key in ("training", "validation", "rate"):
            if point[key] is not None:
                yield f"recovery/{key}", point["step"], point[key]


def metrics_of(values: Mapping[str, float]) -> list[Any]:
    """Numbers as MLflow takes them, all of this moment."""
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    return [Metric(legal_name(name), value, now, 0) for name, value in values.items()]


def params_of(values: Mapping[str, Any]) -> list[Any]:
    """Parameters as MLflow takes them, as text."""
    from mlflow.entities import Param

    return [Param(legal_name(key), truncate(format_value(value))) for key, value in values.items()]


def flatten_numbers(given: Any, above: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested table with their path."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from flatten_numbers(value, f"{above}/{key}")
    elif isinstance(given, int | float) and not isinstance(given, bool):
        yield above, given


def explain_error(error: BaseException) -> str:
    """Why a run ended, in one line."""
    if not isinstance(error, Exception):
        return f"interrupted ({type(error).__name__})"
    return one_line(error) if isinstance(error, MgaaError) else f"{type(error).__name__}: {one_line(error)}"


def legal_name(name: str) -> str:
    """A name with the characters and of the length that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def format_value(value: Any) -> str:
    """A parameter as text, as in `params.yaml`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def truncate(value: str) -> str:
    """A value that MLflow takes; what is cut off is in `parameters.json` or in the message on the terminal."""
    return value if len(value) <= VALUE else f"{value[: VALUE - 3]}..."
