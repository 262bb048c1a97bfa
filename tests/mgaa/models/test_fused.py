"""A model that is taken apart computes the same, each part is the matrix it is named after, and together it is the model it was."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Mxfp4Config, PreTrainedModel, PreTrainedTokenizerFast

from mgaa.checkpoints.load import load
from mgaa.checkpoints.save import save
from mgaa.errors import InputError, UsageError
from mgaa.models.architectures import decoder_blocks
from mgaa.models.experts import Experts
from mgaa.models.fused import FusedLinear, fuse_, unfuse_
from tests.mgaa.conftest import FAMILIES

Tiny = Callable[..., PreTrainedModel]
Forward = Callable[[PreTrainedModel], Tensor]
FUSED = ["phi3", "gpt2", "gpt_neox", "falcon", "falcon, grouped heads", "falcon, sequential"]
MIXTURES = ["gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "qwen3_moe, mixed"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_taken_apart_computes_the_same(family: str, tiny: Tiny, logits: Forward) -> None:
    model = tiny(family).double()
    expected = logits(model)
    assert unfuse_(model) is model
    torch.testing.assert_close(logits(model), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FUSED + MIXTURES)
def test_taking_apart_twice_changes_nothing(family: str, tiny: Tiny) -> None:
    model = unfuse_(tiny(family))
    modules = dict(model.named_modules())
    assert dict(unfuse_(model).named_modules()) == modules
    assert not any(module.training for module in modules.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_put_together_again_it_is_the_model_it_was(
    family: str, dtype: torch.dtype, tiny: Tiny, logits: Forward
) -> None:
    model = tiny(family).to(dtype)
    before, expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}, logits(model)
    kinds = {name: type(module) for name, module in model.named_modules()}
    fuse_(unfuse_(model))
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("family", FUSED + MIXTURES)
def test_a_dense_model_taken_apart_is_saved_as_transformers_writes_it(
    family: str, tiny: Tiny, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save(tiny(family), words, tmp_path / "whole")
    save(unfuse_(tiny(family)), words, tmp_path / "apart")
    one, two = (hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()) for name in ("whole", "apart"))
    assert one.hexdigest() == two.hexdigest()
    assert not any(AutoModelForCausalLM.from_pretrained(tmp_path / "apart", output_loading_info=True)[1].values())


def rows(model: PreTrainedModel, layer: str, part: str) -> Tensor:
    weight: Tensor = decoder_blocks(unfuse_(model))[0].get_submodule(f"{layer}.{part}").weight
    return weight


def test_phi3_has_the_rows_of_q_k_and_v_and_of_gate_and_up_one_after_the_other(tiny: Tiny) -> None:
    block = decoder_blocks(tiny("phi3"))[0]  # 4 heads of q, 2 of k, of 8 rows each
    qkv, gate_up = block.self_attn.qkv_proj.weight, block.mlp.gate_up_proj.weight
    for part, expected in (("q", qkv[:32]), ("k", qkv[32:48]), ("v", qkv[48:])):
        assert torch.equal(rows(tiny("phi3"), "self_attn.qkv_proj", part), expected)
    for part, expected in (("gate", gate_up[:48]), ("up", gate_up[48:])):
        assert torch.equal(rows(tiny("phi3"), "mlp.gate_up_proj", part), expected)


def test_gpt_neox_has_the_rows_of_q_k_and_v_head_by_head(tiny: Tiny) -> None:
    fused = decoder_blocks(tiny("gpt_neox"))[0].attention.query_key_value.weight
    for offset, part in enumerate("qkv"):
        heads = [fused[24 * head + 8 * offset : 24 * head + 8 * offset + 8] for head in range(4)]
        assert torch.equal(rows(tiny("gpt_neox"), "attention.query_key_value", part), torch.cat(heads))


def test_falcon_has_after_the_heads_of_q_of_a_group_its_head_of_k_and_of_v(tiny: Tiny) -> None:
    """One group in a multi-query model, one per head of k in the new architecture, one per head in the old one."""
    for family, groups in (("falcon", 1), ("falcon, grouped heads", 2), ("falcon, sequential", 4)):
        fused = decoder_blocks(tiny(family))[0].self_attention.query_key_value.weight
        queries = 32 // groups
        starts = [(queries + 16) * group for group in range(groups)]
        for part, first, last in (("q", 0, queries), ("k", queries, queries + 8), ("v", queries + 8, queries + 16)):
            expected = torch.cat([fused[start + first : start + last] for start in starts])
            assert torch.equal(rows(tiny(family), "self_attention.query_key_value", part), expected)


def test_gpt2_has_the_columns_of_q_k_and_v_because_conv1d_is_transposed(tiny: Tiny) -> None:
    block = decoder_blocks(tiny("gpt2"))[0]
    for offset, part in enumerate("qkv"):
        expected = block.attn.c_attn.weight[:, 32 * offset : 32 * offset + 32].T
        assert torch.equal(rows(tiny("gpt2"), "attn.c_attn", part), expected)
    linear = decoder_blocks(unfuse_(tiny("gpt2")))[0].mlp.c_fc
    assert torch.equal(linear.weight, block.mlp.c_fc.weight.T)
    assert torch.equal(linear.bias, block.mlp.c_fc.bias)


def test_an_expert_is_its_slice_of_the_stack_and_the_router_is_left_alone(tiny: Tiny) -> None:
    before, after = (decoder_blocks(model)[0].mlp for model in (tiny("mixtral"), unfuse_(tiny("mixtral"))))
    for index, expert in enumerate(after.experts):
        gate, up = before.experts.gate_up_proj[index].chunk(2)
        assert torch.equal(expert.gate_proj.weight, gate)
        assert torch.equal(expert.up_proj.weight, up)
        assert torch.equal(expert.down_proj.weight, before.experts.down_proj[index])
    assert type(after.gate) is type(before.gate)
    assert torch.equal(after.gate.weight, before.gate.weight)


def test_a_mixture_sums_what_the_experts_of_each_token_make_of_it() -> None:
    """Against the definition, token by token; an expert that nobody chose is never called."""
    torch.manual_seed(0)
    linears = [nn.Linear(5, 5, bias=False, dtype=torch.float64) for _ in range(4)]
    experts = Experts(linears)
    linears[3].forward = None  # type: ignore[assignment]
    x, weights = torch.randn(7, 5, dtype=torch.float64), torch.rand(7, 2, dtype=torch.float64)
    chosen = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1], [1, 0], [2, 0]])
    expected = [
        sum(w * (linears[e].weight @ t) for e, w in zip(c, v, strict=True))
        for t, c, v in zip(x, chosen, weights, strict=True)
    ]
    with torch.no_grad():
        torch.testing.assert_close(experts(x, chosen, weights), torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FUSED)
def test_the_parts_keep_no_fused_tensor_alive(family: str, tiny: Tiny) -> None:
    for module in decoder_blocks(unfuse_(tiny(family))).modules():
        if isinstance(module, FusedLinear):
            parts = [module.get_submodule(name).weight for name in module.names]
            assert all(part.untyped_storage().nbytes() == part.nbytes for part in parts)


@pytest.mark.parametrize(
    ("family", "layer", "complaint"),
    [
        (
            "phi3",
            "self_attn.qkv_proj",
            "70 rows, expected 4 heads of q with 8 rows each, and as many heads of k as of v",
        ),
        ("phi3", "mlp.gate_up_proj", "71 rows, expected 2 equal parts"),
        ("gpt_neox", "attention.query_key_value", "80 rows, expected 4 heads"),  # 3 heads of k do not divide 4 of q
        ("falcon", "self_attention.query_key_value", "32 rows, expected 4 heads"),
    ],
)
def test_a_fused_layer_of_unexpected_shape_is_refused(family: str, layer: str, complaint: str, tiny: Tiny) -> None:
    model = tiny(family)
    decoder_blocks(model)[1].set_submodule(layer, nn.Linear(32, int(complaint.split()[0])))
    with pytest.raises(InputError, match=rf"\.1\.{layer} has {complaint}.*the config belongs to another checkpoint"):
        unfuse_(model)


def test_experts_of_unexpected_shape_are_refused(tiny: Tiny) -> None:
    model = tiny("olmoe")
    stack = decoder_blocks(model)[1].mlp.experts
    stack.down_proj = nn.Parameter(torch.zeros(3, 32, 48))
    with pytest.raises(
        InputError, match=r"layers\.1\.mlp\.experts has weights .* down_proj of \(3, 32, 48\), expected"
    ):
        unfuse_(model)


def test_a_quantised_layer_is_refused(tiny: Tiny) -> None:
    model = tiny("phi3")
    decoder_blocks(model)[0].set_submodule("self_attn.qkv_proj", nn.Identity())
    with pytest.raises(InputError, match=r"a fused layer is a Identity, expected nn\.Linear or Conv1D: start from the"):
        unfuse_(model)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("family", FUSED + MIXTURES)
def test_apart_and_together_keep_what_learns_and_what_drops(family: str, learns: bool, tiny: Tiny) -> None:
    model = fuse_(unfuse_(tiny(family).requires_grad_(learns)))
    assert {parameter.requires_grad for parameter in model.parameters()} == {learns}
    assert not any(module.training for module in model.modules())


def test_a_part_without_a_bias_has_zeros_beside_one_that_has(tiny: Tiny) -> None:
    model = unfuse_(tiny("falcon", bias=True))
    layer = decoder_blocks(model)[0].self_attention.query_key_value
    layer.k.bias = None
    expected = layer.v.bias.detach().clone()
    bias = decoder_blocks(fuse_(model))[0].self_attention.query_key_value.bias
    assert torch.equal(bias[32:40], torch.zeros(8))
    assert torch.equal(bias[40:], expected)


@pytest.mark.parametrize("family", ["phi3", "gpt2", "mixtral"])
def test_low_rank_layers_are_not_put_together(family: str, tiny: Tiny, compress: Tiny) -> None:
    with pytest.raises(UsageError, match=r"low-rank layers, expected dense ones: fold them by mgaa\.densify"):
        fuse_(compress(tiny(family)))


def mxfp4(model: PreTrainedModel, folder: Path) -> None:
    """Write a gpt_oss as it is published: experts in blocks of 32 numbers of four bits with a scale."""
    model.save_pretrained(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 124, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (folder / "config.json").write_text(json.dumps(content))


def test_published_weights_of_gpt_oss_are_refused_with_the_way_to_dequantise_them_which_works(
    tiny: Tiny, words: PreTrainedTokenizerFast, logits: Forward, tmp_path: Path
) -> None:
    mxfp4(tiny("gpt_oss", intermediate_size=32).bfloat16(), tmp_path / "published")
    words.save_pretrained(tmp_path / "published")
    with pytest.raises(
        InputError, match=r"is quantised \(mxfp4\): .*Mxfp4Config\(dequantize=True\)\), and mgaa\.save writes it"
    ):
        load(tmp_path / "published")
    given = {"dtype": "bfloat16", "quantization_config": Mxfp4Config(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "published", **given).eval()
    save(model, words, tmp_path / "plain")
    again, _ = load(tmp_path / "plain", device="cpu")
    assert torch.equal(logits(again), logits(model))
