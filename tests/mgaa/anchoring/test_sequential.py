"""Blocks behind the compressed blocks before them: what is measured there, what is spent, and that it can be taken up again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from mgaa.anchoring.sequential import CompressedBlock, allowance, compress_block, put_
from mgaa.budget import parameter_budget
from mgaa.checkpoints.save import twin_of
from mgaa.errors import UsageError
from mgaa.levels import Target, ratios_of
from mgaa.methods import available_methods, method_traits
from mgaa.models.architectures import decoder_blocks, matrices_of
from mgaa.models.fused import unfuse_
from mgaa.statistics.calibration import Calibration, CalibrationSettings, stream_cosines, stream_statistics
from tests.support.allocations import reads_file

Tiny = Callable[..., PreTrainedModel]
COMPRESSED: dict[str, Any] = {"inputs": "compressed"}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "falcon", "gpt2"])
def test_a_block_is_measured_on_the_outputs_of_the_compressed_blocks_before_it(
    family: str, tiny: Tiny, tokens: Tensor
) -> None:
    """Against hooks on a whole model whose first block is compressed and whose second is dense."""
    model = unfuse_(tiny(family)).double()
    matrices = matrices_of(model)
    calibration = Calibration(model, tokens, CalibrationSettings())
    block = compress_block(
        model,
        0,
        calibration.statistics(0),
        matrices,
        {f"{i}.{s}": 0.5 for i in (0, 1) for s in ("attention", "ffn")},
        Target(0.5, 1),
        ("afm", {}),
        ("energy", {}),
        spent=0,
    )
    put_(model, 0, block)
    calibration.advance(0)
    found = calibration.statistics(1)
    seen: dict[str, Tensor] = {}
    local = next(matrix.local for matrix in matrices if matrix.role == "o")
    handle = (
        decoder_blocks(model)[1]
        .get_submodule(local)
        .register_forward_pre_hook(lambda _, given: seen.__setitem__("x", given[0].flatten(0, -2)))
    )
    with torch.no_grad():
        model(tokens)
    handle.remove()
    torch.testing.assert_close(found.of(local).mean, seen["x"].mean(0))
    torch.testing.assert_close(found.of(local).mean_square, seen["x"].square().mean(0))


def test_the_first_block_is_measured_as_with_dense_inputs(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    dense = next(iter(stream_statistics(model, tokens)))
    found = Calibration(model, tokens, CalibrationSettings()).statistics(0)
    for name, inputs in dense.inputs.items():
        assert torch.equal(found.inputs[name].covariance, inputs.covariance)


def test_a_calibration_that_is_built_again_holds_the_same_bits(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    once = Calibration(model, tokens, CalibrationSettings(batch_size=3))
    once.measure(0)
    again = Calibration(twin_of(model), tokens, CalibrationSettings(batch_size=3))
    again.advance(0)
    a, b = once.statistics(1), again.statistics(1)
    assert a.cosines == b.cosines
    assert all(torch.equal(a.inputs[name].covariance, b.inputs[name].covariance) for name in a.inputs)


@pytest.mark.parametrize("family", ["llama", "phi", "mixtral"])
def test_cosines_alone_are_those_of_the_whole_measurement(family: str, tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny(family))
    whole, alone = list(stream_statistics(model, tokens)), list(stream_cosines(model, tokens))
    assert [(a.cosines, a.branch_cosines) for a in alone] == [(a.cosines, a.branch_cosines) for a in whole]
    assert all(not each.inputs for each in alone)


@pytest.mark.parametrize("section", ["factors", "ratios", "ranks"])
def test_every_method_works_behind_compressed_blocks(section: str, tiny: Tiny, tokens: Tensor) -> None:
    budget = parameter_budget(matrices_of(tiny()), 0.4)
    for name in available_methods(section):
        traits = method_traits(section, name)
        if not reads_file(section, name) and not (traits.whole_model or traits.gradients):  # of the dense model
            given = {section: name, "groups": len(tokens), **COMPRESSED}
            report = mgaa.compress_(tiny(), tokens, compression=0.4, **given)
            assert report.linear_parameters + report.budget_left == budget
            assert report.budget_left >= 0


def test_what_a_block_leaves_over_the_next_one_spends(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny(num_hidden_layers=4)
    matrices = matrices_of(model)
    report = mgaa.compress_(model, tokens, compression=0.3, **COMPRESSED)
    ratios = {each.name: each.ratio for each in report.sublayers}
    spent = 0
    for index in range(4):
        spent += sum(x.parameters for x, m in zip(report.matrices, matrices, strict=True) if m.block == index)
        assert 0 <= allowance(matrices, ratios, 0.3, index) - spent < 150  # a step of the largest of these matrices
    assert allowance(matrices, ratios, 0.3, 3) == parameter_budget(matrices, 0.3)


def test_the_call_is_its_blocks_one_after_the_other(tiny: Tiny, tokens: Tensor) -> None:
    whole, model = tiny(), tiny()
    mgaa.compress_(whole, tokens, compression=0.3, ratios="linear", **COMPRESSED)
    matrices, target = matrices_of(model), Target(0.3)
    cosines = {f"{i}.{s}": c for i, b in enumerate(stream_cosines(model, tokens)) for s, c in b.cosines.items()}
    ratios = ratios_of(matrices, cosines, target, ("linear", {"band": None}), centred=True)
    done: list[CompressedBlock] = []
    for index in range(2):  # as processes that are killed after every block would
        behind = tiny()
        calibration = Calibration(behind, tokens, CalibrationSettings())
        for before, block in enumerate(done):
            put_(behind, before, block)
            calibration.advance(before)
        spent = sum(rank.parameters for block in done for rank in block.ranks)
        chosen = ("afm", {}), ("energy", {})
        statistics = calibration.statistics(index)
        done.append(compress_block(model, index, statistics, matrices, ratios, target, *chosen, spent=spent))
    for index, block in enumerate(done):
        put_(model, index, block)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True))


def test_with_one_block_the_inputs_do_not_matter(tiny: Tiny, tokens: Tensor) -> None:
    dense, behind = tiny(num_hidden_layers=1), tiny(num_hidden_layers=1)
    mgaa.compress_(dense, tokens, compression=0.3)
    mgaa.compress_(behind, tokens, compression=0.3, **COMPRESSED)
    assert all(
        torch.equal(a, b) for a, b in zip(dense.state_dict().values(), behind.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("ranks", [{"method": "file", "path": "a.json"}, {"method": "loss"}])
def test_rules_for_the_whole_model_are_refused_before_anything_is_measured(ranks: Any, tiny: Tiny) -> None:
    unmeasurable = torch.full((2, 16), 64)  # no token of the vocabulary
    with pytest.raises(
        UsageError, match=rf"inputs is compressed, expected .* block by block: ranks\.method={ranks['method']} is"
    ):
        mgaa.compress_(tiny(), unmeasurable, ranks=ranks, **COMPRESSED)


def test_other_inputs_are_refused(tiny: Tiny, tokens: Tensor) -> None:
    with pytest.raises(UsageError, match=r"inputs is 'sparse', expected 'dense' or 'compressed'"):
        mgaa.compress_(tiny(), tokens, inputs="sparse")
