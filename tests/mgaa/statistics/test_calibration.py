"""Truths of calibration: what is streamed block by block is what hooks on the plain forward see, and the model stays as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.models.architectures import decoder_blocks
from mgaa.models.fused import unfuse_
from mgaa.statistics.calibration import check_tokens, stream_statistics
from mgaa.statistics.statistics import BlockStatistics
from tests.mgaa.conftest import FAMILIES

Tiny = Callable[..., PreTrainedModel]
FIELDS = ("mean", "mean_square", "mean_abs", "covariance", "group_means", "group_counts")


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))


@contextmanager
def recorded_inputs(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Inputs of every linear of the blocks during a forward of the whole model, `(tokens, channels)` in float64."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, arguments, name=name: seen.update({name: arguments[0].detach().flatten(0, -2).double()})
        )
        for name, module in decoder_blocks(model).named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def same(one: BlockStatistics, two: BlockStatistics) -> bool:
    fields = [
        (getattr(one.inputs[key], field), getattr(two.inputs[key], field)) for key in one.inputs for field in FIELDS
    ]
    return one.cosines == two.cosines and all(torch.equal(a, b) for a, b in fields)


# windows shorter than the text give the blocks of one model different masks
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}


@pytest.mark.parametrize(
    ("family", "settings"),
    [*((family, {}) for family in FAMILIES), ("mistral", {"sliding_window": 4}), ("qwen2", SLIDING)],
)
def test_statistics_are_those_of_the_inputs_that_the_whole_model_computes(
    tiny: Tiny, tokens: Tensor, family: str, settings: dict[str, object]
) -> None:
    model = unfuse_(tiny(family, **settings).double())
    with recorded_inputs(model) as seen, torch.no_grad():
        model(tokens)
    for index, statistics in enumerate(stream_statistics(model, tokens, groups=3, batch_size=4, expert_tokens=0.0)):
        for linear in statistics.shared:
            x, found = seen[f"{index}.{linear}"], statistics.of(linear)
            weight = decoder_blocks(model)[index].get_submodule(linear).weight.detach()
            side = x if found.side == "input" else x @ weight.T
            centred = side - side.mean(0)
            torch.testing.assert_close(found.mean, x.mean(0), rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(found.mean_square, x.square().mean(0), rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(found.mean_abs, x.abs().mean(0), rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(found.covariance, centred.T @ centred / len(x), rtol=1e-9, atol=1e-11)
            groups = torch.stack([part.sum(0) / max(len(part), 1) for part in side.split(found.group_counts.tolist())])
            torch.testing.assert_close(found.group_means, groups, rtol=1e-9, atol=1e-11)
            assert "experts" in linear or found.group_counts.tolist() == [24, 24, 24]


def test_the_moment_is_taken_on_the_narrower_side(tiny: Tiny, tokens: Tensor) -> None:
    statistics = next(iter(stream_statistics(tiny("qwen3"), tokens)))  # heads x head_dim = 64 > hidden size = 32
    sides = {
        linear: (statistics.of(linear).side, len(statistics.of(linear).covariance)) for linear in statistics.shared
    }
    assert sides == {
        **{f"self_attn.{name}_proj": ("input", 32) for name in "qkv"},
        "self_attn.o_proj": ("output", 32),
        "mlp.gate_proj": ("input", 32),
        "mlp.up_proj": ("input", 32),
        "mlp.down_proj": ("output", 32),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_micro_batch_changes_nothing_that_the_forward_does_not(
    tiny: Tiny, tokens: Tensor, dtype: torch.dtype
) -> None:
    """Bit for bit where the forward is bit-equal (kernels may round differently by batch, in bfloat16 they do), else closely."""
    model = tiny().to(dtype)
    whole = list(stream_statistics(model, tokens, groups=3, batch_size=6))
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states
    for size in (1, 4):
        with torch.no_grad():
            parts = [model(part, output_hidden_states=True).hidden_states for part in tokens.split(size)]
        bit_equal = all(torch.equal(a, torch.cat(b)) for a, b in zip(states, zip(*parts, strict=True), strict=True))
        split = list(stream_statistics(model, tokens, groups=3, batch_size=size))
        assert not bit_equal or all(same(one, two) for one, two in zip(whole, split, strict=True))
        for one, two in zip(whole, split, strict=True):
            for key in one.inputs:
                a, b = one.inputs[key].covariance, two.inputs[key].covariance
                assert float((a - b).abs().max()) <= 4 * torch.finfo(dtype).eps * float(a.abs().max())


def test_twice_the_same_is_bit_equal(tiny: Tiny, tokens: Tensor) -> None:
    one, two = (list(stream_statistics(tiny(), tokens)) for _ in range(2))
    assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_the_model_is_left_as_it_was(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    with torch.no_grad():
        before = model(tokens).logits
    list(stream_statistics(model, tokens))
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, before)
    assert_untouched(model)


def test_a_consumer_that_stops_early_leaves_nothing_behind(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    next(iter(stream_statistics(model, tokens)))
    assert_untouched(model)


def assert_untouched(model: PreTrainedModel) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_a_forward_that_others_have_wrapped_is_put_back(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    block = decoder_blocks(model)[1]
    inner = block.forward
    block.forward = wrapper = lambda *args, **kwargs: inner(*args, **kwargs)  # as accelerate does
    list(stream_statistics(model, tokens))
    assert block.forward is wrapper


# --- what cannot be calibrated


def test_an_activation_that_is_not_finite_names_the_layer_and_the_sequence(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    tokens[tokens == 7] = 8
    tokens[4, 3] = 7
    model.get_input_embeddings().weight.data[7, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"model\.layers\.0\.self_attn\.q_proj has .* calibration sequence 4"):
        list(stream_statistics(model, tokens, batch_size=3))
    assert_untouched(model)


def test_an_overflow_in_half_precision_is_an_error_with_the_remedy(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny().half()
    decoder_blocks(model)[1].get_submodule("mlp.up_proj").weight.data.fill_(6e4)
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.down_proj has .*set backbone\.dtype to bfloat16"):
        list(stream_statistics(model, tokens))


def test_a_branch_that_overflows_at_the_end_of_a_block_is_noticed(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny().half()
    decoder_blocks(model)[1].get_submodule("mlp.down_proj").weight.data.fill_(6e4)
    with pytest.raises(NumericalError, match=r"residual stream of model\.layers\.1\.ffn is not finite"):
        list(stream_statistics(model, tokens))


@pytest.mark.parametrize("name", ["self_attn.k_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tiny: Tiny, tokens: Tensor, name: str, value: float) -> None:
    model = tiny()
    decoder_blocks(model)[1].get_parameter(name).data.view(-1)[5] = value
    with pytest.raises(NumericalError, match=rf"model\.layers\.1\.{name} has 1 non-finite entries"):
        list(stream_statistics(model, tokens))


@pytest.mark.parametrize("shape", [(0, 12), (6, 0), (12,), ()])
def test_tokens_that_are_no_sequences_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"calibration tokens have shape .*expected \(sequences, length\)"):
        check_tokens(torch.zeros(shape, dtype=torch.int64), 64)


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (3, 64)])
def test_ids_outside_the_vocabulary_are_refused(tiny: Tiny, tokens: Tensor, low: int, high: int) -> None:
    tokens[0, 0], tokens[1, 1] = low, high
    with pytest.raises(InputError, match=r"but the model has 64 embeddings: use the tokenizer"):
        list(stream_statistics(tiny(), tokens))


@pytest.mark.parametrize("settings", [{"groups": 0}, {"batch_size": 0}, {"batch_size": -1}])
def test_less_than_one_group_or_sequence_is_refused(tiny: Tiny, tokens: Tensor, settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected whole numbers from 1 on"):
        list(stream_statistics(tiny(), tokens, **settings))


def test_an_architecture_without_an_entry_is_refused_with_the_way_to_add_it(tokens: Tensor) -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(InputError, match=r"'bloom' has no entry; known are falcon, .*mgaa/models/entries\.py"):
        list(stream_statistics(model, tokens))


# --- mixtures of experts


def test_an_expert_is_measured_on_the_tokens_that_the_router_sends_it(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny("mixtral").double())
    block = decoder_blocks(model)[0]
    routed: list[tuple[Tensor, Tensor]] = []
    handle = block.mlp.experts.register_forward_pre_hook(lambda _, arguments: routed.append(arguments[:2]))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    hidden, chosen = routed[0]
    found = next(iter(stream_statistics(model, tokens, groups=2, batch_size=4, expert_tokens=0.0)))
    for expert in range(4):
        taken = (chosen == expert).any(1)
        statistics = found.of(f"mlp.experts.{expert}.gate_proj")
        assert statistics.count == int(taken.sum())
        assert statistics.group_counts.tolist() == [int(half.sum()) for half in taken.chunk(2)]
        torch.testing.assert_close(statistics.mean, hidden[taken].mean(0), rtol=1e-9, atol=1e-11)
    counts = [found.of(f"mlp.experts.{expert}.down_proj").count for expert in range(4)]
    assert sum(counts) == tokens.numel() * model.config.num_experts_per_tok


def test_experts_are_measured_alike_in_any_micro_batch(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny("qwen2_moe").double())
    whole, split = (list(stream_statistics(model, tokens, groups=3, batch_size=size)) for size in (6, 1))
    for one, two in zip(whole, split, strict=True):
        assert one.shared == two.shared
        for key in one.inputs:
            assert one.inputs[key].count == two.inputs[key].count
            torch.testing.assert_close(one.inputs[key].covariance, two.inputs[key].covariance, rtol=1e-9, atol=1e-11)


def test_experts_with_few_tokens_are_shrunk_and_shared_experts_are_not(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny("qwen2_moe").double())
    few, all_ = (list(stream_statistics(model, tokens, expert_tokens=minimum))[1] for minimum in (1000.0, 0.0))
    for key in all_.inputs:
        same_ = torch.equal(few.inputs[key].covariance, all_.inputs[key].covariance)
        assert same_ == ("mlp.experts" not in key)


def test_an_expert_without_tokens_is_named_with_the_remedy(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny("olmoe"))
    router = decoder_blocks(model)[1].mlp.gate
    router.register_forward_hook(lambda _, __, output: (*output[:2], output[2].clamp(max=2)))
    with pytest.raises(
        InputError, match=r"layers\.1\.mlp\.experts\.3\.gate_proj received none of the calibration tokens"
    ):
        list(stream_statistics(model, tokens))


def test_linears_that_read_one_input_share_its_statistics(tiny: Tiny, tokens: Tensor) -> None:
    shared = next(iter(stream_statistics(unfuse_(tiny("phi3")), tokens))).shared
    assert shared["self_attn.qkv_proj.v"] == shared["self_attn.qkv_proj.q"] == "self_attn.qkv_proj.q"
    assert shared["mlp.gate_up_proj.up"] == "mlp.gate_up_proj.gate"
