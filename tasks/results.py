"""What a run leaves for people: `results/`, `models/compressed/`, and the one dictionary they are written from.

Artifacts are sealed and know nothing of each other's times; here they are joined. Everything is written at the end of a run, in whole files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.allocate_ranks import rank_table
from tasks.artifact import Artifact, Store
from tasks.evaluate import metrics_of
from tasks.load_backbone import backbone_record
from tasks.parameters import Parameters
from tasks.sealing import readable
from tasks.writing import write_file

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


def metrics(store: Store, results: Results, method: str, checkpoint: Path) -> dict[str, Any]:
    """The content of `results/metrics.json`: every model with the same keys, and the evaluation card that they share."""
    backbone = backbone_record(store, results.backbone)
    common = [results.backbone, results.texts, results.tokens["calibration"], results.statistics, *results.spectra]
    models = {DENSE: _model(store, results.dense, backbone["linear_parameters"], backbone, [])}
    for name, model in results.models.items():
        kept = rank_table(store, model.ranks)["linear_parameters"]
        made = [*common, model.ratios, model.ranks, *model.factors, model.checkpoint]
        place = checkpoint if name == method else store.place(model.checkpoint)
        models[name] = {**_model(store, model.metrics, kept, backbone, made), "checkpoint": str(place)}
    return {"models": models, "card": metrics_of(store, results.dense)["card"]}


def _model(
    store: Store, evaluated: Artifact, kept: int, backbone: Mapping[str, Any], made: list[Artifact]
) -> dict[str, Any]:
    measured = {key: value for key, value in metrics_of(store, evaluated).items() if key != "card"}
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


def publish(parameters: Parameters, store: Store, results: Results) -> dict[str, Any]:
    """Export the checkpoint of the run's method with its record, and write `results/*.json`."""
    ...
