"""Promotion: the version of the registered model that passed the gate (section `registry.gate`) becomes the champion.

A version is judged by the metrics of its run in MLflow, hence alike on every machine. A metric that was not measured, or is not a number,
passes no bound. The alias `champion` moves if and only if all bounds hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgaa.errors import InputError, UsageError
from tasks.config.parameters import PathSections
from tasks.config.sections.registry import Gate
from tasks.results.publish import DENSE
from tasks.tracking.backend import connect, translate_store_errors
from tasks.tracking.registration import CANDIDATE, CHAMPION, set_alias

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

SCORES = {"tasks": "acc", "questions": "accuracy"}
"""Score of a task or of a set of questions that the gate uses."""


@dataclass(frozen=True)
class Version:
    """A version of the registered model, with the metrics of its run.

    Attributes:
        method: name of the model among the metrics.
    """

    number: int
    aliases: tuple[str, ...]
    run: str
    name: str
    method: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]

    def of(self, key: str, model: str | None = None) -> float:
        """Metric of this model, or of another one in its run; NaN if it was not measured."""
        return self.metrics.get(f"{key}/{model or self.method}", float("nan"))

    @property
    def above_dense(self) -> float:
        """Perplexity as a multiple of the dense model's."""
        return self.of("perplexity") / self.of("perplexity", DENSE)

    def losses(self) -> dict[str, float]:
        """Percentage points below dense, by task and set of questions."""
        return {
            name: 100 * (self.of(group, f"{DENSE}/{name}/{score}") - self.of(group, f"{self.method}/{name}/{score}"))
            for group, score in SCORES.items()
            for name in metric_names(self.metrics, f"{group}/{DENSE}/", f"/{score}")
        }


def metric_names(metrics: Mapping[str, float], before: str, after: str) -> list[str]:
    """Middle parts of the metric names that start with `before` and end with `after`, if they are one word."""
    middles = [
        key.removeprefix(before).removesuffix(after)
        for key in metrics
        if key.startswith(before) and key.endswith(after)
    ]
    return [each for each in middles if "/" not in each]


def versions(params: PathSections) -> list[Version]:
    """Versions of `registry.model`, oldest first.

    Raises:
        UsageError: no name is set, or no run has registered under it.
        ResourceError: the tracking store cannot be reached.
    """
    model = model_of(params)
    with translate_store_errors(params.tracking_uri):
        client, _ = connect(params)
        return versions_of(client, model)


def versions_of(client: "MlflowClient", model: str) -> list[Version]:
    """Versions of a registered model, oldest first, read through an open client."""
    found = client.search_model_versions(f"name = '{model}'")
    if not found:
        raise UsageError(
            f"registry.model is {model!r}, which has no version in MLflow: expected a name under which a run has registered its "
            f"checkpoint; run `python -m flows.compress registry.model={model}` first."
        )
    aliases: dict[str, list[str]] = {}
    for alias, number in client.get_registered_model(model).aliases.items():
        aliases.setdefault(str(number), []).append(alias)
    made = [version_of(client, each, aliases.get(str(each.version), [])) for each in found]
    return sorted(made, key=lambda version: version.number)


def version_of(client: "MlflowClient", version: "ModelVersion", aliases: list[str]) -> Version:
    """Version with the metrics of its run."""
    run = client.get_run(version.run_id)
    facts = run.info.run_id, run.info.run_name, run.data.params.get("method", "")
    return Version(int(version.version), tuple(sorted(aliases)), *facts, version.tags, run.data.metrics)


def model_of(params: PathSections) -> str:
    """Name of the registered model."""
    if params.registry.model is None:
        raise UsageError(
            "registry.model is null: expected the name of a registered model, such as registry.model=mgaa."
        )
    return params.registry.model


def promote(params: PathSections, number: int | None = None) -> Version:
    """Give a version, by default the candidate, the alias `champion` if it passes the gate.

    Raises:
        InputError: the version misses a bound; the champion stays.
        UsageError: there is no such version.
        ResourceError: the tracking store cannot be reached or written.
    """
    model = model_of(params)
    with translate_store_errors(params.tracking_uri):
        client, _ = connect(params)
        known = versions_of(client, model)
        chosen, champion = choose_version(known, number), with_alias(known, CHAMPION)
        if missed := missed_bounds(params.registry.gate, chosen, champion):
            stays = "there is no champion" if champion is None else f"version {champion.number} stays champion"
            raise InputError(
                f"Version {chosen.number} of {model} does not pass the gate: {'; '.join(missed)}; {stays}. Compress less or "
                "better, or change registry.gate."
            )
        set_alias(client, model, CHAMPION, str(chosen.number))
    return chosen


def choose_version(versions: list[Version], number: int | None) -> Version:
    """Version of a number, or the candidate."""
    chosen = [each for each in versions if each.number == number]
    if number is None:
        chosen = [each for each in versions if CANDIDATE in each.aliases]
    if not chosen:
        missing = "with the alias candidate" if number is None else str(number)
        raise UsageError(
            f"There is no version {missing}: expected one of {', '.join(str(each.number) for each in versions)}."
        )
    return chosen[0]


def with_alias(versions: list[Version], alias: str) -> Version | None:
    """Version that has an alias, if there is one."""
    return next((each for each in versions if alias in each.aliases), None)


def missed_bounds(gate: Gate, version: Version, champion: Version | None) -> list[str]:
    """List the bounds that a version misses, with the value and the bound."""
    missed = []

    def bound(held: bool, told: str, limit: str, key: str) -> None:
        if not held:
            missed.append(f"{told}, expected {limit} (registry.gate.{key})")

    if (most := gate.perplexity) is not None:
        value = version.above_dense
        bound(value <= most, f"perplexity is {value:.4f} times dense's", f"at most {most:g}", "perplexity")
    if (least := gate.model_compression) is not None:
        value = version.of("model_compression")
        bound(value >= least, f"model_compression is {value:.4f}", f"at least {least:g}", "model_compression")
    if (most := gate.accuracy) is not None:
        losses = version.losses()
        bound(bool(losses), "no task was measured", f"at most {most:g} points below dense", "accuracy")
        for name, value in losses.items():
            bound(value <= most, f"{name} is {value:.2f} points below dense", f"at most {most:g}", "accuracy")
    if (most := gate.champion) is not None and champion is not None:
        value, size = version.of("perplexity"), version.of("bytes")
        best, room = champion.of("perplexity"), champion.of("bytes")
        told = f"perplexity is {value:.4f}, the champion's {best:.4f} (version {champion.number})"
        bound(value <= most * best, told, f"at most {most:g} times that", "champion")
        bound(size <= room, f"{size:.0f} bytes are more than the champion's {room:.0f}", "no more", "champion")
    return missed
