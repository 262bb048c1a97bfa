"""Any model is measured by the same protocol, and gives the same numbers as in the run that made it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.evaluate import evaluate
from mgaa.errors import NumericalError
from tasks.artifact import Store
from tasks.load_backbone import identify, load_backbone
from tests.flows.laboratory import Laboratory, Outcome, copy_model, model_of, write_tokenizer

Lab = tuple[Laboratory, Outcome]


def evaluation(lab: Laboratory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.root / "results" / "evaluation.json").read_text())
    return found


@pytest.mark.parametrize("name", ["mgaa", "dense"])
def test_a_model_of_a_run_gives_the_numbers_of_that_run_exactly(name: str, done: Laboratory, first: Lab) -> None:
    lab, _ = first
    source = lab.root / "models" / "compressed" if name == "mgaa" else model_of(lab)
    outcome = done.run(f"backbone.source='{str(source).replace(chr(39), chr(39) * 2)}'", flow=evaluate)
    assert outcome == Outcome(0, "", {"load_model": 1, "tokenize": 3, "evaluate": 1})
    told = json.loads((lab.root / "results" / "metrics.json").read_text())
    assert told["models"][name].items() - evaluation(done).items() == set()


def test_a_model_of_any_architecture_is_evaluated(done: Laboratory, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel
