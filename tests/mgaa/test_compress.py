"""The one-call method, end to end on tiny random models: the report says what was really done, and nothing else was touched."""

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

import mgaa
from mgaa.budget import parameter_budget
from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.methods import available_methods, method_traits
from mgaa.models.architectures import decoder_blocks, matrices_of
from mgaa.models.fused import unfuse_
from mgaa.ranks import allocate_ranks, ladders_of
from mgaa.statistics.calibration import stream_statistics
from tests.mgaa.conftest import FAMILIES
from tests.support.allocations import reads_file

Tiny = Callable[..., PreTrainedModel]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(0))


def linear_parameters(model: PreTrainedModel, dense: PreTrainedModel) -> int:
    """Parameters of the blocks' linears, counted on the modules; biases count where the dense model had none."""
    total = 0
    for matrix in matrices_of(dense):
        own = matrix.m if matrix.bias else 0
        total += sum(parameter.numel() for parameter in model.get_submodule(matrix.name).parameters()) - own
    return total


def logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize(
    ("family", "compression"), [*((family, 0.3) for family in FAMILIES), ("llama", 0.1), ("llama", 0.6)]
)
def test_the_report_counts_the_parameters_that_the_modules_have(
    tiny: Tiny, tokens: Tensor, family: str, compression: float
) -> None:
    model, dense = tiny(family), unfuse_(tiny(family))
    matrices = matrices_of(dense)
    report = mgaa.compress_(model, tokens, compression=compression)
    total = sum(matrix.parameters for matrix in matrices)
    assert report.linear_parameters == linear_parameters(model, dense) == sum(x.parameters for x in report.matrices)
    assert report.linear_parameters + report.budget_left == parameter_budget(matrices, compression)
    assert report.budget_left >= 0
    assert report.compression == pytest.approx(1 - report.linear_parameters / total)
    assert report.compression >= compression - 1 / total


def test_the_report_says_of_each_matrix_what_the_module_is(tiny: Tiny, tokens: Tensor) -> None:
    model, dense = tiny(), tiny()
    report = mgaa.compress_(model, tokens, compression=0.1)
    assert [x.name for x in report.matrices] == [x.name for x in matrices_of(dense)]
    ranks = {x.name: x.rank for x in report.matrices}
    assert None in ranks.values()  # some of these matrices stay dense, so that both cases are seen
    for x in report.matrices:
        layer, before = model.get_submodule(x.name), dense.get_submodule(x.name)
        assert x.shape == tuple(before.weight.shape)
        if x.rank is None:
            assert isinstance(layer, nn.Linear)
            assert torch.equal(layer.weight, before.weight)
            assert (x.energy, x.error, x.parameters) == (1.0, 0.0, before.weight.numel())
        else:
            assert isinstance(layer, mgaa.LowRankLinear)
            assert layer.rank == x.rank


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("factorizer", ["afm", "whitened"])
def test_kept_energies_are_measured_output_errors(tiny: Tiny, tokens: Tensor, family: str, factorizer: str) -> None:
    """Hooks on the dense model give every linear's inputs; `afm` measures against the deviation of the output from its mean."""
    model = tiny(family).double()
    dense = copy.deepcopy(model)
    inputs: dict[str, Tensor] = {}
    for matrix in matrices_of(dense):
        dense.get_submodule(matrix.name).register_forward_pre_hook(
            lambda _, arguments, name=matrix.name: inputs.update({name: arguments[0].flatten(0, 1)})
        )
    logits(dense, tokens)
    report = mgaa.compress_(model, tokens, compression=0.4, factors=factorizer)
    assert any(x.rank is not None for x in report.matrices)
    for x in report.matrices:
        linear, given = dense.get_submodule(x.name), inputs[x.name]
        with torch.no_grad():
            wanted, found = linear.forward(given), model.get_submodule(x.name)(given)
            whole = given @ linear.weight.T
        whole = whole - whole.mean(0) if factorizer == "afm" else whole
        error = float((wanted - found).square().sum() / whole.square().sum())
        assert error == pytest.approx(1 - x.energy, abs=1e-9)
        assert x.error == pytest.approx(math.sqrt(error), abs=1e-5)


def test_sublayers_report_the_ratio_asked_for_and_the_ratio_reached(tiny: Tiny, tokens: Tensor) -> None:
    model, dense = tiny(), tiny()
    report = mgaa.compress_(model, tokens, compression=0.3)
    sizes: dict[str, int] = {}
    kept: dict[str, int] = {}
    for matrix, x in zip(matrices_of(dense), report.matrices, strict=True):
        sizes[matrix.sublayer] = sizes.get(matrix.sublayer, 0) + matrix.parameters
        kept[matrix.sublayer] = kept.get(matrix.sublayer, 0) + x.parameters
    assert [x.name for x in report.sublayers] == list(sizes)
    asked = sum(x.ratio * sizes[x.name] for x in report.sublayers)
    assert asked == pytest.approx(0.3 * sum(sizes.values()))
    blocks = list(stream_statistics(dense, tokens))
    for x in report.sublayers:
        block, _, name = x.name.partition(".")
        assert x.reached == pytest.approx(1 - kept[x.name] / sizes[x.name])
        assert x.cosine == blocks[int(block)].cosines[name]


def test_the_report_is_plain_data(tiny: Tiny, tokens: Tensor) -> None:
    report = mgaa.compress_(tiny(), tokens, compression=0.3)
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["matrices"][0]["name"] == report.matrices[0].name
    assert plain["compression"] == report.compression


@pytest.mark.parametrize(
    ("section", "name"),
    [(section, name) for section in ("factors", "ratios", "ranks") for name in available_methods(section)],
)
def test_every_method_compresses_within_the_budget(
    tiny: Tiny, tokens: Tensor, tmp_path: Path, section: str, name: str
) -> None:
    model, dense = tiny("qwen3"), tiny("qwen3")
    chosen: dict[str, Any] = {"method": name}
    if reads_file(section, name):
        chosen["path"] = tmp_path / "found.json"
        mgaa.compress_(tiny("qwen3"), tokens, compression=0.3).save(chosen["path"])
    report = mgaa.compress_(model, tokens, compression=0.3, groups=len(tokens), **{section: chosen})  # type: ignore[arg-type]
    assert linear_parameters(model, dense) <= parameter_budget(matrices_of(dense), 0.3)
    verbatim = section == "ranks" and method_traits(section, name).verbatim
    assert report.budget_left < 200 or verbatim  # a step of the largest of these matrices
    assert bool(logits(model, tokens).isfinite().all())


def test_the_share_of_error_in_the_logits_falls_with_the_compression(tiny: Tiny, tokens: Tensor) -> None:
    before = logits(tiny().double(), tokens)
    errors = []
    for compression in (0.6, 0.3, 0.05):
        model = tiny().double()
        mgaa.compress_(model, tokens, compression=compression)
        errors.append(float((logits(model, tokens) - before).square().sum() / before.square().sum()))
    assert errors == sorted(errors, reverse=True)


def test_only_the_linears_of_the_blocks_change(tiny: Tiny, tokens: Tensor) -> None:
    model, dense = tiny("qwen2"), tiny("qwen2")
    mgaa.compress_(model, tokens, compression=0.3)
    names = {matrix.name for matrix in matrices_of(dense)}
    after = model.state_dict()
    others = {key: tensor for key, tensor in dense.state_dict().items() if key.rpartition(".")[0] not in names}
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= others.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in others.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_model_keeps_its_dtype(tiny: Tiny, tokens: Tensor, dtype: torch.dtype) -> None:
    model = tiny().to(dtype)
    mgaa.compress_(model, tokens, compression=0.3)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert bool(logits(model, tokens).isfinite().all())


def test_twice_the_same_is_bit_equal(tiny: Tiny, tokens: Tensor) -> None:
    one, two = tiny(), tiny()
    assert mgaa.compress_(one, tokens, compression=0.3) == mgaa.compress_(two, tokens, compression=0.3)
    states = one.state_dict(), two.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] | states[1])


def test_a_single_sequence_calibrates(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    mgaa.compress_(model, tokens[:1], compression=0.3)
    assert bool(logits(model, tokens).isfinite().all())


def test_an_input_that_is_always_zero_warns_and_compresses(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    decoder_blocks(model)[0].get_parameter("input_layernorm.weight").data.zero_()
    with pytest.warns(UserWarning, match=r"the input of self_attn\.\w_proj is zero"):
        mgaa.compress_(model, tokens, compression=0.3)
    assert bool(logits(model, tokens).isfinite().all())


# --- options


def test_options_reach_their_methods(tiny: Tiny, tokens: Tensor) -> None:
    report = mgaa.compress_(
        tiny(),
        tokens,
        compression=0.3,
        ratios={"method": "softmax", "temperature": 0.05, "band": 0.06},
        ranks={"method": "energy", "power": 0.5, "multiple": 2},
    )
    assert max(x.ratio for x in report.sublayers) <= 0.36 + 1e-12
    assert {x.rank % 2 for x in report.matrices if x.rank is not None} == {0}


@pytest.mark.parametrize("inputs", ["dense", "compressed"])
def test_in_the_metric_of_the_identity_both_spectra_give_the_same_model(
    tiny: Tiny, tokens: Tensor, inputs: str
) -> None:
    metric, plain = (
        mgaa.compress_(
            tiny("mixtral"), tokens, factors="svd", ranks={"method": "energy", "spectrum": each}, inputs=inputs
        )
        for each in ("metric", "plain")
    )
    assert plain == metric


def test_ranks_by_the_plain_spectrum_are_those_of_the_singular_values_of_the_weights(
    tiny: Tiny, tokens: Tensor
) -> None:
    model = tiny()
    matrices = matrices_of(model)
    weights = {x.name: model.get_submodule(x.name).weight.detach().double() for x in matrices}
    report = mgaa.compress_(model, tokens, compression=0.4, ranks={"method": "energy", "spectrum": "plain"})
    energies = {
        name: torch.linalg.eigvalsh(w @ w.T).flip(0)[: min(w.shape)].clamp(min=0) for name, w in weights.items()
    }
    ratios = {x.name: x.ratio for x in report.sublayers}
    expected = allocate_ranks("energy", ladders_of(matrices, energies, centred=True), ratios, compression=0.4)
    assert [x.rank for x in report.matrices] == [x.rank for x in expected]
    assert report.linear_parameters <= parameter_budget(matrices, 0.4)


@pytest.mark.parametrize("inputs", ["dense", "compressed"])
def test_without_the_residual_level_1_compares_what_enters_a_sublayer_with_what_it_adds(
    tiny: Tiny, tokens: Tensor, inputs: str
) -> None:
    model = tiny().double()
    seen: dict[str, float] = {}
    for index, block in enumerate(decoder_blocks(model)):
        for name, norm, module in (
            ("attention", "input_layernorm", "self_attn"),
            ("ffn", "post_attention_layernorm", "mlp"),
        ):
            entering: list[Tensor] = []
            block.get_submodule(norm).register_forward_pre_hook(lambda _, args, to=entering: to.append(args[0]))

            def leave(
                _: nn.Module, __: Any, output: Any, key: str = f"{index}.{name}", of: list[Tensor] = entering
            ) -> None:
                added = output[0] if isinstance(output, tuple) else output
                seen[key] = float(torch.cosine_similarity(of[-1], added, dim=-1).mean())

            block.get_submodule(module).register_forward_hook(leave)
    logits(model, tokens)
    ratios = {"method": "softmax", "band": None}
    found, usual = (
        mgaa.compress_(tiny(), tokens, ratios={**ratios, "residual": each}, inputs=inputs) for each in (False, True)
    )
    assert {x.name: x.cosine for x in found.sublayers} == pytest.approx(seen, abs=1e-5)
    assert [x.ratio for x in found.sublayers] != [x.ratio for x in usual.sublayers]
    order = sorted(found.sublayers, key=lambda x: seen[x.name])
    assert [x.ratio for x in order] == sorted(x.ratio for x in order)  # the more alike, the more is removed


def test_a_mapping_that_was_given_is_not_changed(tiny: Tiny, tokens: Tensor) -> None:
    given = {"method": "softmax", "band": 0.1}
    mgaa.compress_(tiny(), tokens, compression=0.3, ratios=given)
    assert given == {"method": "softmax", "band": 0.1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compression": 0.0}, r"compression is 0\.0, expected a number between 0 and 1"),
        ({"compression": 1.0}, r"compression is 1\.0, expected a number between 0 and 1"),
        ({"compression": 0.99}, r"compression 0\.99 is out of reach: .*largest reachable compression is"),
        ({"factors": "pca"}, r"factors\.method is 'pca', expected one of .*afm"),
        ({"ratios": "softmx"}, r"ratios\.method is 'softmx', expected one of .*softmax"),
        ({"ranks": "energies"}, r"ranks\.method is 'energies', expected one of .*energy"),
        (
            {"ratios": {"temperature": 0.1}},
            r"expected a name or a mapping with the key 'method'; methods are .*softmax",
        ),
        ({"ratios": {"method": "softmax", "temprature": 0.1}}, r"ratios\.temprature is not an option .* temperature"),
        ({"ratios": {"method": "softmax", "compression": 0.1}}, r"ratios\.compression is not an option"),
        ({"ranks": {"method": "energy", "multiple": 0}}, r"ranks\.multiple is 0, expected a positive whole number"),
        (
            {"ranks": {"method": "energy", "multiple": 64}},
            r"ranks\.multiple is 64, but .* set ranks\.multiple to at most",
        ),
        ({"ratios": {"method": "softmax", "band": 0.0}}, r"ratios\.band is 0\.0, expected a positive number"),
        ({"ratios": {"method": "softmax", "residual": "no"}}, r"ratios\.residual is 'no', expected true or false"),
        (
            {"ranks": {"method": "energy", "spectrum": "weight"}},
            r"ranks\.spectrum is 'weight', expected one of metric, ",
        ),
        ({"batch_size": 0}, r"batch_size is 0, expected whole numbers from 1 on"),
        ({"factors": "pooled"}, r"groups is 32, but there are 8 calibration sequences, expected at least one for each"),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_model_stays_as_it_was(
    tiny: Tiny, tokens: Tensor, settings: dict[str, Any], message: str
) -> None:
    model = tiny()
    before = logits(model, tokens)
    with pytest.raises(UsageError, match=message):
        mgaa.compress_(model, tokens, **settings)
    assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize(
    "settings",
    [
        {"factors": "pca"},
        {"factors": {"method": "asvd", "alpha": 0.0}},
        {"ratios": "softmx"},
        {"ratios": {"method": "softmax", "temperature": 0.0}},
        {"ratios": {"method": "uniform", "band": 0.0}},
        {"ranks": {"method": "energy", "pwer": 1}},
        {"ranks": {"method": "energy", "power": 0.0}},
        {"ranks": {"method": "uniform", "multiple": 64}},
        {"compression": 0.99},
        {"factors": "pooled", "groups": 2},
        {"factors": "pooled", "inputs": "compressed"},
    ],
)
def test_a_wrong_method_option_or_target_is_noticed_before_anything_is_calibrated(
    tiny: Tiny, settings: Mapping[str, Any]
) -> None:
    with pytest.raises(UsageError):
        mgaa.compress_(
            tiny(), torch.full((1, 4), 10**6), **settings
        )  # these tokens would be refused by the calibration


def test_the_named_largest_compression_works(tiny: Tiny, tokens: Tensor) -> None:
    with pytest.raises(UsageError) as refusal:
        mgaa.compress_(tiny(), tokens, compression=0.99)
    named = float(str(refusal.value).split("reachable compression is ")[1].split()[0])
    report = mgaa.compress_(tiny(), tokens, compression=named)
    assert {x.rank for x in report.matrices} == {1}


def test_a_model_is_compressed_once(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    mgaa.compress_(model, tokens, compression=0.3)
    before = logits(model, tokens)
    with pytest.raises(InputError, match=r"is a LowRankLinear, expected nn\.Linear: start from the dense backbone"):
        mgaa.compress_(model, tokens, compression=0.3)
    assert torch.equal(logits(model, tokens), before)


def test_an_unknown_architecture_is_refused(tokens: Tensor) -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(InputError, match=r"'bloom' has no entry; known are .*mgaa/models/entries\.py"):
        mgaa.compress_(model, tokens)


def test_a_damaged_weight_stops_the_call_and_leaves_the_model(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    decoder_blocks(model)[1].get_parameter("mlp.up_proj.weight").data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has 1 non-finite entries"):
        mgaa.compress_(model, tokens, compression=0.3)
    assert all(isinstance(model.get_submodule(matrix.name), nn.Linear) for matrix in matrices_of(model))
