"""What a run leaves for people: `results/`, `models/compressed/`, and the one dictionary they are written from.

Artifacts are sealed and know nothing of each other's times; here they are joined. Everything is written at the end of a run, in whole files.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.recording import Execution, busy, peak_rss
from tasks.records import METRICS, RANKS, backbone_record, table

DENSE = "dense"


@dataclass(frozen=True)
class Compressed:
    """The artifacts of one compressed model."""

    ratios: Artifact
    ranks: Artifact
    factors: list[Artifact]
    checkpoint: Artifact
    metrics: Artifact


@dataclass(frozen=True)
class Results:
    """The artifacts of a run; `models` by name, the run's method last."""

    backbone: Artifact
    texts: Artifact
    tokens: dict[str, Artifact]
    statistics: Artifact
    spectra: list[Artifact]
    dense: Artifact
    models: dict[str, Compressed]

    def artifacts(self) -> dict[str, Artifact | list[Artifact]]:
        """Every artifact by the stage that it belongs to, for lineage."""
        shared: dict[str, Artifact | list[Artifact]] = {
            "backbone": self.backbone,
            "texts": self.texts,
            **{f"tokens.{name}": tokens for name, tokens in self.tokens.items()},
            "statistics": self.statistics,
            "spectra": self.spectra,
            "metrics.dense": self.dense,
        }
        for name, model in self.models.items():
            shared |= {f"{kind}.{name}": artifact for kind, artifact in vars(model).items()}
        return shared


@dataclass(frozen=True)
class Effort:
    """What a run cost: steps, seconds from the start of the flow, seconds in which a step was at work, memory."""

    executed: int
    reused: int
    wall_seconds: float
    work_seconds: float
    peak_memory_bytes: int

    @staticmethod
    def since(began: float, executions: Sequence[Execution]) -> "Effort":
        """From `time.perf_counter()` at the start of the flow, which is after Prefect's server has started."""
        reused = sum(execution.reused for execution in executions)
        wall = time.perf_counter() - began
        return Effort(len(executions) - reused, reused, wall, busy(list(executions)), peak_rss())


def metrics(store: Store, results: Results, *, place: Path, effort: Effort) -> dict[str, Any]:
    """The content of `results/metrics.json`: every model with the same keys, the evaluation card that they share, the run's effort.

    Args:
        place: where the checkpoint of the run's method (the last model) goes; those of the baselines stay in the store.
    """
    backbone = backbone_record(store, results.backbone)
    common = [results.backbone, results.texts, results.tokens["calibration"], results.statistics, *results.spectra]
    models = {DENSE: _model(store, results.dense, backbone["linear_parameters"], backbone, [])}
    for name, model in results.models.items():
        kept = table(store, model.ranks, RANKS)["linear_parameters"]
        made = [*common, model.ratios, model.ranks, *model.factors, model.checkpoint]
        checkpoint = place if name == [*results.models][-1] else store.place(model.checkpoint)
        models[name] = {**_model(store, model.metrics, kept, backbone, made), "checkpoint": str(checkpoint)}
    return {"models": models, "card": table(store, results.dense, METRICS)["card"], "run": asdict(effort)}


def _model(
    store: Store, evaluated: Artifact, kept: int, backbone: Mapping[str, Any], made: list[Artifact]
) -> dict[str, Any]:
    measured = {key: value for key, value in table(store, evaluated, METRICS).items() if key != "card"}
    return {
        **measured,
        "linear_parameters": kept,
        "compression": 1 - kept / backbone["linear_parameters"],
        "model_compression": 1 - measured["parameters"] / backbone["parameters"],
        "seconds": {
            "compress": sum(store.manifest(artifact)["seconds"] for artifact in made),
            "evaluate": store.manifest(evaluated)["seconds"],
        },
    }
