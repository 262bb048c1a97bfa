"""The training: it learns, repeats with the seed, stops on a diverging loss; and the committed backbone is what it should be."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from demo import corpus, packing, train, train_vlm
from mgaa.checkpoints.ownership import foreign
from mgaa.errors import NumericalError, UsageError

ENCODED = [torch.tensor([0, *(range(10, 40) if each % 2 else range(40, 70))] * 20) for each in range(8)]
VALIDATION = packing.rows(ENCODED, 64)[:4]


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=80,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )


def plan(rate: float = 1e-2) -> train.Plan:
    return train.Plan(steps=30, batch=8, length=64, rate=rate, compile=False)


def test_training_lowers_the_validation_loss() -> None:
    model = tiny()
    before = train.evaluate(model, VALIDATION, what="before")
    curve, steps = train.fit(model, ENCODED, VALIDATION, plan())
    assert steps == 30
    assert curve[-1][0] == 30
    assert train.evaluate(model, VALIDATION, what="after") < before - 1


def test_training_repeats_with_the_seed() -> None:
    assert train.fit(tiny(), ENCODED, VALIDATION, plan()) == train.fit(tiny(), ENCODED, VALIDATION, plan())


def test_a_loss_that_is_not_finite_stops_the_training_with_the_remedy() -> None:
    with pytest.raises(NumericalError, match="--rate"):
        train.fit(tiny(), ENCODED, VALIDATION, plan(rate=float("inf")))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"minutes": -1.0}, {"rate": 0.0}])
def test_a_plan_without_steps_time_or_rate_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be above 0"):
        train.check(train.Plan(**wrong, compile=False))  # type: ignore[arg-type]


def test_compiling_without_a_compiler_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--no-compile"):
            train.check(train.Plan())


def test_the_rate_warms_up_and_decays_to_zero() -> None:
    rates = [train.Progress(plan(), step=step).rate for step in (0, 30)]
    assert rates == [0.0, 0.0]
    assert max(train.Progress(train.Plan(steps=1000), step=step).rate for step in range(1000)) == pytest.approx(
        3e-3, rel=1e-3
    )


def test_the_committed_backbone_is_the_llama_that_the_training_describes() -> None:
    folder = corpus.RECORD.parent
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    expected = train.configuration()
    assert model.dtype == torch.bfloat16
    assert 3e6 <= model.num_parameters() <= 8e6
    assert (folder / "model.safetensors").stat().st_size <= 16 * 2**20
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_key_value_heads",
        "max_position_embeddings",
    ):
        assert getattr(model.config, name) == getattr(expected, name)


def test_the_committed_backbone_beats_the_byte_model_and_xz_on_the_test_split() -> None:
    bits = json.loads(corpus.RECORD.read_text())["bits_per_byte"]
    assert bits["backbone"] < min(bits["byte_model_order_5"], bits["xz_9e_test_alone"])


@pytest.mark.parametrize("name", ["demo", "demo-vlm"])
def test_what_a_training_left_is_marked_and_may_give_way_to_the_next(name: str) -> None:
    assert foreign(train.FINAL.with_name(name)) == ["README.md"]


def test_a_training_does_not_begin_where_it_would_replace_a_model_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(UsageError, match=r"holds model.safetensors, which mgaa did not write"):
        train.train(plan(), tmp_path)
    with pytest.raises(UsageError, match=r"holds model.safetensors, which mgaa did not write"):
        train_vlm.train(train_vlm.Plan(), tmp_path)
