"""The rules of other methods: what follows from their definitions, on a tiny random Llama; that they share one budget; and the tables."""

import csv
import io
import itertools
import math
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.peers import asvd, kfac, lems, zs_svd
from benchmarks.peers.filling import Prepared
from benchmarks.proof_tables import COLUMNS, cells_as_csv, tables
from mgaa.budget import Ladder, Matrix, parameter_budget
from mgaa.models.architectures import matrices_of
from mgaa.models.lowrank import low_rank_layers
from tests.support.processes import ROOT

RULES: dict[str, Callable[..., Prepared]] = {
    "asvd": partial(asvd.prepare, sequences=2),
    "zs-svd": zs_svd.prepare,
    "lems": partial(lems.prepare, sequences=2),
}


def llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Two blocks of 16 channels with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def tokens() -> Tensor:
    return torch.randint(32, (32, 24), generator=torch.Generator().manual_seed(1))


def matrix(name: str, m: int = 10, n: int = 10) -> Matrix:
    return Matrix(name, name, 0, "0.attention", m, n, False)


def ladder(name: str) -> Ladder:
    return Ladder.of(matrix(name), torch.linspace(1, 0.1, 10, dtype=torch.float64), multiple=1, centred=False)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_keeps_to_the_budget_and_leaves_less_than_a_step(rule: str) -> None:
    model = llama()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    compressed = RULES[rule](model, tokens())
    matrices = matrices_of(model)
    for compression in (0.1, 0.3, 0.5):
        layers = low_rank_layers(compressed(compression))
        kept = sum(
            each.cost(layers[each.name].rank if each.name in layers else None, centred=False) for each in matrices
        )
        budget = parameter_budget(matrices, compression)
        assert budget - max(each.m + each.n for each in matrices) < kept <= budget
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_finds_the_same_model_twice(rule: str) -> None:
    first, second = (RULES[rule](llama(), tokens())(0.3).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_predicted_changes_of_all_components_are_the_derivative_of_scaling_the_weight() -> None:
    model = llama(torch.float64)
    names = [each.name for each in matrices_of(model)]
    gradients = zs_svd.weight_gradients(model, tokens(), names)
    for name in names:
        weight = model.get_submodule(name).weight.detach()
        basis = torch.linalg.svd(weight, full_matrices=False).U
        changes = zs_svd.changes_of(weight, gradients[name], basis)
        assert float(changes.sum()) == pytest.approx(-float((gradients[name] * weight).sum()), abs=1e-12)


def test_a_predicted_change_is_what_the_loss_does_when_a_component_shrinks() -> None:
    model, read, step = llama(torch.float64), tokens(), 1e-2  # its norms compute in float32
    linear = model.get_submodule(name := "model.layers.1.mlp.up_proj")
    weight = linear.weight.detach().clone()
    U, s, Vh = torch.linalg.svd(weight, full_matrices=False)
    changes = zs_svd.changes_of(weight, zs_svd.weight_gradients(model, read, [name])[name], U)

    def loss(factor: float) -> float:
        linear.weight.data = weight - factor * s[3] * U[:, 3].outer(Vh[3])
        logits = model(read).logits[:, :-1].flatten(0, 1)
        return float(torch.nn.functional.cross_entropy(logits, read[:, 1:].flatten()).detach())

    assert (loss(step) - loss(-step)) / (2 * step) == pytest.approx(float(changes[3]), rel=1e-2)


def test_zero_sum_takes_the_least_change_of_the_sign_that_brings_the_sum_back() -> None:
    pair = [matrix("a"), matrix("b")]
    # the offers come from the end: a has 1, 1, 1, ... and b -3, 2, 2, ...
    changes = {"a": torch.tensor([1.0] * 10), "b": torch.tensor([2.0] * 9 + [-3.0])}
    # +1 of a; then the sum is positive: -3 of b; then a twice until it is 0, and once more; no negative offer is left: the least, a's
    assert zs_svd.zero_sum(pair, changes, 180) == {"a": 4, "b": None}
    # break-even of 10 x 10 is 5 exclusive: a saves nothing above rank 4, and then 20 by each
    assert zs_svd.zero_sum(pair, changes, 160) == {"a": 3, "b": None}


def test_a_floor_of_zero_sum_is_kept() -> None:
    changes = {"a": torch.ones(10), "b": torch.full((10,), 2.0)}
    assert zs_svd.zero_sum([matrix("a"), matrix("b")], changes, 120, floor=0.75) == {"a": 3, "b": 3}


def test_asvd_cuts_the_matrix_to_which_the_loss_is_least_sensitive() -> None:
    ladders = [ladder("a"), ladder("b")]
    sensitivities = {
        name: {share: scale * (1 - share) for share in asvd.SHARES} for name, scale in (("a", 0.1), ("b", 9))
    }
    assert asvd.searched(ladders, sensitivities, 0.1) == {"a": 4, "b": None}
    assert asvd.searched(ladders, sensitivities, 0.3) == {"a": 2, "b": None}


def test_the_integer_program_finds_what_trying_everything_finds() -> None:
    drawn = random.Random(0)
    costs = [[100, *(20 * rank for rank in (1, 2, 3, 4))] for _ in range(4)]
    errors = [[0.0, *sorted((drawn.random() for _ in range(4)), reverse=True)] for _ in range(4)]
    choices = lems.Choices([[None, 1, 2, 3, 4]] * 4, costs, errors)
    weights = [4.0, 3.0, 2.0, 1.0]

    def error(picked: tuple[int, ...]) -> float:
        return sum(w * e[i] for w, e, i in zip(weights, errors, picked, strict=True))

    for budget in (80, 160, 230, 320, 400):
        legal = [
            each
            for each in itertools.product(range(5), repeat=4)
            if sum(c[i] for c, i in zip(costs, each, strict=True)) <= budget
        ]
        found = tuple(choices.ranks[0].index(rank) for rank in lems.least_error(choices, weights, budget))
        assert found in legal
        assert error(found) == pytest.approx(min(map(error, legal)))


def test_the_weight_of_a_block_falls_from_the_first_to_one_in_the_last() -> None:
    assert lems.depth_weights([0, 1, 2], 0.0, 4.0) == pytest.approx([5.0, 3.0, 1.0])
    first, middle, last = lems.depth_weights([0, 1, 2], 1.0, 4.0)
    # 1/(k + 1): 1 + 1/2 + 1/3, 1/2 + 1/3 and 1/3 from block b on
    assert (first, middle, last) == pytest.approx((5.0, 1 + 4 * 0.5 / 1.5, 1.0))


def test_the_weighted_error_of_a_rank_is_the_sum_of_the_energies_it_drops() -> None:
    torch.manual_seed(0)
    weight, x, g = torch.randn(12, 20).double(), torch.randn(50, 20).double(), torch.randn(40, 12).double()
    found = kfac.weighted(weight, x.T @ x, g.T @ g)
    for rank in (1, 5, 12):
        factors = found.factors(rank)
        lost = g @ (weight - factors.B @ factors.A) @ x.T
        assert float(lost.square().sum()) == pytest.approx(float(found.energies[rank:].sum()), rel=1e-9, abs=1e-9)


def test_gradients_are_held_to_a_tenth_and_tenfold_of_their_mean_norm() -> None:
    g = torch.ones(1, 22, 4) / 2
    g[0, 0], g[0, 1], g[0, 2] = 50.0, 0.001, 0.0
    norms = g.norm(dim=2)[0]
    mean = float(norms.sum() / 21)
    held = kfac.held(g).norm(dim=2)[0]
    assert held[:4].tolist() == pytest.approx([10 * mean, 0.1 * mean, 0.0, 1.0], rel=1e-6)


@pytest.fixture
def tiny_proof() -> dict[str, object]:
    """What three methods lose on one backbone at 0.2, with the same loss in every window."""

    def cell(nll: float) -> dict[str, object]:
        text = {"nll": nll, "losses": [nll] * 4, "tokens": 1}
        return {"inside": text, "outside": text, "removed": 0.2, "cpu_seconds": nll}

    losses = {"uniform": 3.0, "mgaa": 2.0, "other": 1.5}
    return {"tiny": {"dense": cell(1.0), "cells": {name: {"0.2": cell(nll)} for name, nll in losses.items()}}}


def test_the_summary_takes_increases_relative_to_mgaa_and_to_uniform(tiny_proof: dict[str, object]) -> None:
    printed = tables(tiny_proof).splitlines()
    assert "| other | 50% | 25% | 50% (tiny 0.2) | 25% (tiny 0.2) | 50% | 1 | 0 | 0.75 | 1 |" in printed


def test_a_cell_has_its_differences_to_mgaa_and_to_uniform_with_their_intervals(tiny_proof: dict[str, object]) -> None:
    rows = list(csv.DictReader(io.StringIO(cells_as_csv(tiny_proof))))
    assert [row["method"] for row in rows] == ["dense", "uniform", "mgaa", "other"]
    row = rows[-1]
    assert (row["backbone"], row["compression"], row["perplexity"]) == ("tiny", "0.2", f"{math.exp(1.5):.3f}")
    assert row["increase"] == "500.0"
    assert [row[f"minus_mgaa{bound}"] for bound in ("", "_low", "_high")] == ["-500.0"] * 3
    assert [row[f"minus_uniform{bound}"] for bound in ("", "_low", "_high")] == ["-1500.0"] * 3


def test_the_cells_in_the_documents_have_the_columns_that_the_benchmark_writes_and_differ_as_they_say() -> None:
    with (ROOT / "docs" / "proof.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) > 200
    increases = {(row["backbone"], row["compression"], row["method"]): float(row["increase"]) for row in rows}
    for (backbone, compression, method), increase in increases.items():
        if method not in ("mgaa", "dense"):
            (row,) = (each for each in rows if list(each.values())[:3] == [backbone, compression, method])
            difference = increase - increases[backbone, compression, "mgaa"]
            assert float(row["minus_mgaa"]) == pytest.approx(difference, abs=0.151)
