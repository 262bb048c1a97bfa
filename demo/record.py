"""Content of `models/demo/training.json`: the text, the recipe and the result of a training, so that each number can be traced.

Losses are in nats per token, measured on the saved bfloat16 weights in float32 arithmetic, over non-overlapping rows of 256 tokens. The
train loss is that of about 240 documents evenly spaced over the train split, measured with the same final weights, so the gap to the
test loss contains both memorization and the difference between the files.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from demo import corpus, yardsticks
from demo.corpus import Document
from mgaa.checkpoints.output_folder import write_output as output_file

if TYPE_CHECKING:
    from demo.plan import Plan

RECORD = "training.json"
WRITTEN = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", RECORD)
"""Files that a training writes into its folder, among others."""
SAMPLE = 240


def recorded_documents(encoded: Mapping[str, Sequence[Tensor]]) -> dict[str, Sequence[Tensor]]:
    """Documents whose loss is recorded: all of validation and test, an even sample of train."""
    train = encoded["train"]
    return {
        "train": train[:: max(1, len(train) // SAMPLE)],
        "validation": encoded["validation"],
        "test": encoded["test"],
    }


def write(
    output: Path,
    plan: "Plan",
    documents: Mapping[str, Sequence[Document]],
    encoded: Mapping[str, Sequence[Tensor]],
    *,
    curve: list[list[float]],
    steps: int,
    losses: Mapping[str, float],
    seconds: float,
    device: torch.device,
) -> None:
    """Write `training.json` next to the checkpoint."""
    content = {
        "versions": corpus.versions(),
        "splits": {name: _split(documents[name], encoded[name]) for name in documents},
        "plan": asdict(plan) | {"steps": steps},
        "epochs": round(steps * plan.batch * plan.length / _tokens(encoded["train"]), 3),
        "curve": curve,
        "loss": {name: round(value, 4) for name, value in losses.items()},
        "gap": round(losses["test"] - losses["train"], 4),
        "bits_per_byte": {name: round(value, 4) for name, value in _bits(documents, encoded, losses["test"]).items()},
        "seconds": round(seconds),
        "device": _name(device),
        "torch": torch.__version__,
    }
    output_file(output / RECORD, (json.dumps(content, indent=1) + "\n").encode())


def _split(documents: Sequence[Document], encoded: Sequence[Tensor]) -> dict[str, int | str]:
    return {
        "sha256": corpus.digest(documents),
        "documents": len(documents),
        "bytes": yardsticks.size_of(documents),
        "tokens": _tokens(encoded),
    }


def _bits(
    documents: Mapping[str, Sequence[Document]], encoded: Mapping[str, Sequence[Tensor]], loss: float
) -> dict[str, float]:
    ours = loss / math.log(2) * _tokens(encoded["test"]) / yardsticks.size_of(documents["test"])
    return {"backbone": ours} | yardsticks.bits_per_byte(documents["train"], documents["test"])


def _tokens(encoded: Sequence[Tensor]) -> int:
    return sum(len(each) for each in encoded)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
