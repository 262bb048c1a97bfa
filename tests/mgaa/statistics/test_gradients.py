"""Truths of the gradients: what comes back block by block is what autograd finds on the whole model, wherever states wait and runs end."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mgaa.blocks.blockwise import Blockwise
from mgaa.blocks.hidden_states import Place
from mgaa.checkpoints.save import load
from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.inputs.prompts import Prompts
from mgaa.models.architectures import decoder_blocks, matrices_of
from mgaa.models.entries import MULTIMODAL
from mgaa.models.fused import unfuse_
from mgaa.statistics.calibration import CalibrationSettings, stream_statistics
from mgaa.statistics.gradients import Gradients, differentiate_model, stream_gradients
from mgaa.statistics.statistics import BlockStatistics
from tests.mgaa.conftest import FAMILIES
from tests.mgaa.statistics.test_calibration import assert_untouched
from tests.mgaa.test_seeing import prompts

Tiny = Callable[..., PreTrainedModel]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))


def plain(model: PreTrainedModel, given: Prompts) -> dict[str, Tensor]:
    """The gradients of the outputs of all linears, (tokens, m) in float64, by the whole model's backward pass, one sequence at a time."""
    seen: dict[str, list[Tensor]] = {matrix.name: [] for matrix in matrices_of(model)}

    def watch(_: nn.Module, __: object, output: Tensor, name: str) -> None:
        output.register_hook(lambda g: seen[name].append(g.flatten(0, -2).double()))  # type: ignore[no-untyped-call]

    handles = [model.get_submodule(name).register_forward_hook(partial(watch, name=name)) for name in seen]
    for each in given.sequences:
        targets = each["input_ids"][0, 1:].clone()
        if given.image_token is not None:
            targets[targets == given.image_token] = -100  # which cross_entropy leaves out
        functional.cross_entropy(model(**each).logits[0, :-1], targets, reduction="sum").backward()
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def named(model: PreTrainedModel, found: dict[int, Gradients]) -> dict[str, Tensor]:
    return {matrix.name: found[matrix.block][matrix.local] for matrix in matrices_of(model)}


def equal(one: dict[int, Gradients], two: dict[int, Gradients]) -> bool:
    return all(
        torch.equal(one[index][linear], two[index][linear]) for index in two for linear in one[index] | two[index]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_those_of_autograd_on_the_whole_model(tiny: Tiny, tokens: Tensor, family: str) -> None:
    model = unfuse_(tiny(family).double())
    found = list(stream_gradients(model, tokens, batch_size=4))
    assert [index for index, _ in found] == [1, 0]
    moments = named(model, dict(found))
    assert_untouched(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, g in plain(model, Prompts.of(tokens)).items():
        torch.testing.assert_close(moments[name], g.T @ g / tokens.numel(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(moments[name].trace(), g.square().sum() / tokens.numel(), rtol=1e-9, atol=0.0)
        assert torch.equal(moments[name], moments[name].T)


@pytest.mark.parametrize("family", sorted(MULTIMODAL))
def test_of_prompts_with_images_the_loss_counts_the_tokens_of_text(tiny: Tiny, family: str) -> None:
    model = unfuse_(tiny(family))
    given = prompts(model)
    moments = named(model, dict(stream_gradients(model, given, batch_size=4)))
    for name, g in plain(model, given).items():
        expected = g.T @ g / given.tokens
        torch.testing.assert_close(moments[name], expected, rtol=0.0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_the_micro_batch_changes_nothing_that_the_forward_does_not(tiny: Tiny, tokens: Tensor, family: str) -> None:
    model = unfuse_(tiny(family).double())
    whole = named(model, dict(stream_gradients(model, tokens, batch_size=6)))
    for size in (1, 4):
        for name, moment in named(model, dict(stream_gradients(model, tokens, batch_size=size))).items():
            torch.testing.assert_close(moment, whole[name], rtol=0.0, atol=1e-13 * float(whole[name].abs().max()))


def test_a_bfloat16_model_has_the_moments_of_the_same_weights_in_float32(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny(initializer_range=0.05).bfloat16()
    half = named(model, dict(stream_gradients(model, tokens)))
    whole = named(model, dict(stream_gradients(model.float(), tokens)))
    for name, moment in whole.items():
        assert half[name].dtype == torch.float64
        assert float(torch.linalg.norm(half[name] - moment) / torch.linalg.norm(moment)) < 0.05


def test_a_model_whose_blocks_stay_in_their_files_has_the_same_bits(
    tiny: Tiny, tokens: Tensor, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny("gpt2").save_pretrained(tmp_path, max_shard_size="30KB")
    words.save_pretrained(tmp_path)
    whole, streamed = (unfuse_(load(tmp_path, stream=stream)[0]) for stream in (False, True))
    assert equal(*(dict(stream_gradients(model, tokens, batch_size=4)) for model in (whole, streamed)))
    assert all(parameter.is_meta for block in decoder_blocks(streamed) for parameter in block.parameters())


@pytest.mark.parametrize("place", ["device", "host", "disk"])
@pytest.mark.parametrize("asked", [1, 3])
def test_wherever_states_wait_an_interrupted_pass_goes_on_with_the_same_bits(
    tiny: Tiny, tokens: Tensor, tmp_path: Path, place: Place, asked: int
) -> None:
    """The block that was given last may not be safe yet, so it is given again."""
    model = tiny(num_hidden_layers=3)
    whole = dict(stream_gradients(model, tokens, batch_size=4))
    first = stream_gradients(model, tokens, batch_size=4, place=place, folder=tmp_path)
    before = dict(next(first) for _ in range(asked))
    del first
    rest = dict(stream_gradients(model, tokens, batch_size=4, place=place, folder=tmp_path))
    assert [*rest] == [*range(3 - asked, -1, -1)]
    assert equal(before | rest, whole)
    assert equal(rest, {index: whole[index] for index in rest})
    assert not [*tmp_path.rglob("*.safetensors")]


def test_a_pass_that_ends_on_the_way_there_goes_on_at_its_block(
    tiny: Tiny, tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, passed, through = tiny(num_hidden_layers=3), list[int](), Blockwise.advance

    def stopping(self: Blockwise, index: int) -> None:
        passed.append(index)
        if passed == [0, 1]:
            raise KeyboardInterrupt
        through(self, index)

    monkeypatch.setattr(Blockwise, "advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        list(stream_gradients(model, tokens, place="disk", folder=tmp_path))
    found = dict(stream_gradients(model, tokens, place="disk", folder=tmp_path))
    assert passed == [0, 1, 1, 2]
    assert equal(found, dict(stream_gradients(model, tokens)))


@pytest.mark.parametrize("family", ["phi3", "olmoe", "llava"])
def test_statistics_measured_on_the_way_back_are_those_of_a_pass_of_their_own(
    tiny: Tiny, tokens: Tensor, family: str
) -> None:
    model = unfuse_(tiny(family))
    found = dict(differentiate_model(model, tokens, CalibrationSettings(groups=3, batch_size=2)))
    alone = list(stream_statistics(model, tokens, groups=3, batch_size=2))
    assert list(found) == [*reversed(range(len(alone)))]
    assert equal({index: block.gradients for index, block in found.items()}, dict(stream_gradients(model, tokens)))
    for index, block in enumerate(alone):
        back = found[index]
        assert (back.cosines, back.shared, back.apart) == (block.cosines, block.shared, block.apart)
        for name, inputs in block.inputs.items():
            assert torch.equal(back.inputs[name].covariance, inputs.covariance)
            assert torch.equal(back.inputs[name].group_means, inputs.group_means)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_linear_is_given_its_gradients_and_the_moments_that_it_shares(tiny: Tiny, tokens: Tensor) -> None:
    index, block = next(differentiate_model(unfuse_(tiny("phi3")), tokens, CalibrationSettings()))
    assert index == 1
    assert block.gradients.keys() == block.shared.keys()
    v = block.of("self_attn.qkv_proj.v")
    assert v.gradient is block.gradients["self_attn.qkv_proj.v"]
    assert v.covariance is block.of("self_attn.qkv_proj.q").covariance


def test_a_file_brings_them_back_and_a_file_without_them_is_read_as_before(
    tiny: Tiny, tokens: Tensor, tmp_path: Path
) -> None:
    model = tiny()
    without = next(stream_statistics(model, tokens))  # type: ignore[call-overload]
    full = dict(differentiate_model(model, tokens, CalibrationSettings()))[0]
    for name, block in (("without", without), ("full", full), ("again", full)):
        block.save(tmp_path / name)
    assert BlockStatistics.load(tmp_path / "without").gradients == {}
    assert equal({0: BlockStatistics.load(tmp_path / "full").gradients}, {0: full.gradients})
    assert (tmp_path / "full").read_bytes() == (tmp_path / "again").read_bytes()
    packed = sum(len(gradient) * (len(gradient) + 1) // 2 for gradient in full.gradients.values())
    grown = (tmp_path / "full").stat().st_size - (tmp_path / "without").stat().st_size
    assert 0 <= grown - 8 * packed < 200 * len(full.gradients)


# --- what cannot be differentiated; all that parameters and shapes tell is found in the call, before anything is measured


def quantised(model: PreTrainedModel) -> PreTrainedModel:
    linear = decoder_blocks(model)[1].mlp.up_proj
    linear.weight = nn.Parameter(linear.weight.data.to(torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(("change", "dtype"), [(PreTrainedModel.half, "float16"), (quantised, "int8")])
def test_a_dtype_that_carries_no_gradients_is_refused_with_the_remedy(
    tiny: Tiny, tokens: Tensor, change: Callable[[PreTrainedModel], PreTrainedModel], dtype: str
) -> None:
    with pytest.raises(UsageError, match=rf"weights in {dtype}, .*expected bfloat16.*set backbone\.dtype=bfloat16"):
        stream_gradients(change(tiny()), tokens)


def test_fewer_tokens_than_outputs_are_refused(tiny: Tiny, tokens: Tensor) -> None:
    with pytest.raises(
        UsageError, match=r"has 36 tokens, expected at least 48, .*gate_proj .*data\.calibration\.samples"
    ):
        stream_gradients(tiny(), tokens[:3])


def test_other_parts_than_the_decoder_are_refused(tiny: Tiny, tokens: Tensor) -> None:
    with pytest.raises(UsageError, match=r"decoder only, but vision .*backbone\.parts=\[decoder\]"):
        differentiate_model(tiny("llava"), tokens, CalibrationSettings(), parts=["decoder", "vision"])


@pytest.mark.parametrize("size", [0, -1])
def test_less_than_one_sequence_at_a_time_is_refused(tiny: Tiny, tokens: Tensor, size: int) -> None:
    with pytest.raises(UsageError, match="expected whole numbers from 1 on"):
        stream_gradients(tiny(), tokens, batch_size=size)


def test_a_loss_that_is_not_finite_names_the_sequence(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    tokens[tokens == 7] = 8
    tokens[4, 3] = 7
    model.get_input_embeddings().weight.data[7, 0] = float("nan")
    with pytest.raises(
        NumericalError, match=r"after the last block has \d+ non-finite .*sequence 4, .*backbone\.dtype"
    ):
        list(stream_gradients(model, tokens, batch_size=3))


def test_a_gradient_that_overflows_on_its_way_names_the_layer_and_the_sequence(tiny: Tiny, tokens: Tensor) -> None:
    """An FFN whose last matrix is huge and whose gated channels are tiny: a plain forward pass, and no way back."""
    model = tiny()
    ffn = decoder_blocks(model)[1].mlp
    ffn.up_proj.weight.data *= 1e-39
    ffn.down_proj.weight.data = 3e38 * ffn.down_proj.weight.data.sign()
    with torch.no_grad():
        assert bool(model(tokens).logits.isfinite().all())
    with pytest.raises(
        NumericalError, match=r"output of model\.layers\.1\.mlp\.\w+_proj has \d+ non-finite entries in .*sequence 0"
    ):
        list(stream_gradients(model, tokens))
    assert_untouched(model)


def test_a_head_that_tells_nothing_apart_is_an_error(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny(tie_word_embeddings=False)
    model.get_output_embeddings().weight.data.zero_()
    with pytest.raises(NumericalError, match="after the last block is zero for every calibration token"):
        list(stream_gradients(model, tokens))


def test_gradients_that_vanish_in_every_linear_are_an_error_also_when_asked_again(
    tiny: Tiny, tokens: Tensor, tmp_path: Path
) -> None:
    model = tiny("olmo2")  # norms behind the branches only
    for name, parameter in decoder_blocks(model).named_parameters():
        if "layernorm" in name:
            parameter.data.zero_()
    for _ in range(2):
        with pytest.raises(NumericalError, match="outputs of all linears is zero for every calibration token"):
            list(stream_gradients(model, tokens, folder=tmp_path))


def test_an_expert_without_tokens_is_named_with_the_remedy(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny("olmoe"))
    router = decoder_blocks(model)[1].mlp.gate
    router.register_forward_hook(lambda _, __, output: (*output[:2], output[2].clamp(max=2)))
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.3\.gate_proj received none of the calibration"):
        list(stream_gradients(model, tokens))
