"""Quantised on top of low rank: in memory it works with what is installed; files and loading refuse it with the way to go."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    QuantoConfig,
)

import mgaa
from mgaa.errors import UsageError

Build = Callable[..., PreTrainedModel]
Forward = Callable[[PreTrainedModel], Tensor]


def dynamic(model: PreTrainedModel) -> PreTrainedModel:
    quantised: PreTrainedModel = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return quantised


def torchao(model: PreTrainedModel) -> PreTrainedModel:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def quanto(model: PreTrainedModel) -> PreTrainedModel:
    library = pytest.importorskip("optimum.quanto")
    library.quantize(model, weights=library.qint8)
    library.freeze(model)
    return model


@pytest.fixture
def folder(tiny: Build, compress: Build, words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    mgaa.save(compress(tiny(), keep=0.4), words, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """torch has announced the end of its own quantisation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("quantise", [dynamic, torchao, quanto], ids=lambda each: each.__name__)
def test_a_loaded_model_is_quantised_in_memory_and_refused_by_save(
    folder: Path, words: PreTrainedTokenizerFast, logits: Forward, quantise: Callable[..., Any], tmp_path: Path
) -> None:
    before = logits(AutoModelForCausalLM.from_pretrained(folder).eval())
    quantised = quantise(AutoModelForCausalLM.from_pretrained(folder).eval())
    after = logits(quantised)
    assert 0 < float((after - before).norm() / before.norm()) < 0.2
    with pytest.raises(mgaa.MgaaError, match=r"quantised.*(quantise it each time|quantise the result afterwards)"):
        mgaa.save(quantised, words, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "config", [BitsAndBytesConfig(load_in_8bit=True), QuantoConfig(weights="int8")], ids=["bnb", "quanto"]
)
def test_a_second_method_while_loading_is_one_message(folder: Path, config: Any) -> None:
    with pytest.raises(
        UsageError, match=r"is a \w+Config, but the model is compressed by mgaa, .* quantise it in memory"
    ):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


def test_the_own_method_while_loading_is_none(folder: Path, logits: Forward) -> None:
    config = AutoModelForCausalLM.from_pretrained(folder).config.quantization_config
    again = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).eval()
    assert torch.equal(logits(again), logits(AutoModelForCausalLM.from_pretrained(folder).eval()))
