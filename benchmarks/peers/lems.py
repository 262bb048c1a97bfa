"""LEMS with KFAC-SVD (Thoma et al., ICML 2026, openreview IjIgNPFuCt): a calibrated error curve per matrix, the best sum by an integer
program.

From the code (https://github.com/lems-svd/lems, `compression/search/lems.py`, `compression/factorization/kfac_svd.py`, its configuration
`kfac_lems`; the paper's text was not at hand): factors by the SVD weighted on both sides, by `X X^T` and by the second moment of
the gradients of the output, shrunk by 0.1 and 0.3 towards the mean of the diagonal; an eighth of the tokens at either end of a sequence has
no say in the latter, and the norms of a sequence's gradients are held to 0.1 to 10 times their mean. The error of a matrix at rank r is its
share of lost energy, scaled so that at a tenth of break-even it is the measured divergence `KL(dense | compressed)` of the model with this
matrix alone truncated (logits over a temperature of 0.6, 32 sequences). Ranks from a tenth to 0.95 of break-even (from 0.3 on where
half or more is kept), or dense at no error. Early blocks count more: `1 + gamma h_b`, `h` falling from 1 to 0 as the sums of `1 / (k +
1)^alpha` from block b on do. An integer program minimises the sum within the budget; ten trials of TPE (Optuna, seed 42, alpha up to 3,
gamma up to 7) choose the pair with the least divergence of the whole model.

Ours: HiGHS (`scipy.optimize.milp`) for Gurobi; exact costs; all tokens enter the divergence, where theirs leaves out the first 256 of 2048;
calibration by this project's tokens. Left out are the recalibration after the search, which that configuration turns off, and LEMS on other
factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import torch
from jaxtyping import Float, Int
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from benchmarks.peers.filling import Prepared, filled
from benchmarks.peers.kfac import Weighted, weighted_spectra
from mgaa.budget import Ladder, parameter_budget
from mgaa.checkpoints.save import apply_factors, twin_of
from mgaa.models.architectures import matrices_of
from mgaa.ranks import ladders_of

REFERENCE = 0.1
"""Fraction of break-even at which the divergence is measured."""
TEMPERATURE = 0.6
TRIALS = 10


@dataclass(frozen=True)
class Choices:
    """Choices of the integer program, one entry per matrix and rank.

    Attributes:
        ranks: by matrix, `None` is dense.
        costs: parameters of each.
        errors: of each, without the weight of its block.
    """

    ranks: list[list[int | None]]
    costs: list[list[int]]
    errors: list[list[float]]


def prepare(model: PreTrainedModel, tokens: Int[Tensor, "s t"], *, sequences: int = 32) -> Prepared:
    """Decompose the model, and measure every matrix once."""
    matrices = matrices_of(model)
    spectra = weighted_spectra(model, tokens, [matrix.name for matrix in matrices])
    ladders = ladders_of(matrices, {name: each.energies for name, each in spectra.items()}, centred=False)
    read = tokens[:sequences]
    dense = _logits(model, read)

    def put(ranks: Mapping[str, int | None]) -> PreTrainedModel:
        twin = twin_of(model)
        apply_factors(twin, {name: spectra[name].factors(rank) for name, rank in ranks.items() if rank is not None})
        return twin

    def diverges(ranks: Mapping[str, int | None]) -> float:
        return divergence(dense, _logits(put(ranks), read))

    scales = [diverges({each.matrix.name: _reference(each)}) for each in ladders]
    blocks = [ladder.matrix.block for ladder in ladders]

    def compressed(compression: float) -> PreTrainedModel:
        budget = parameter_budget(matrices, compression)
        choices = choices_of(ladders, spectra, scales, least=0.1 if compression > 0.5 else 0.3)

        def chosen(alpha: float, gamma: float, rule: str | None = None) -> dict[str, int | None]:
            ranks = least_error(choices, depth_weights(blocks, alpha, gamma), budget)
            return filled(rule, ladders, dict(zip(spectra, ranks, strict=True)), compression)

        def objective(trial: optuna.Trial) -> float:
            return diverges(chosen(trial.suggest_float("alpha", 0, 3), trial.suggest_float("gamma", 0, 7)))

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=42))
        study.optimize(objective, n_trials=TRIALS)
        return put(chosen(**study.best_params, rule="lems"))

    return compressed


def choices_of(
    ladders: Sequence[Ladder], spectra: Mapping[str, Weighted], scales: Sequence[float], *, least: float
) -> Choices:
    """Error curves of all matrices; `scales` are their divergences at the reference."""
    found = Choices([], [], [])
    for ladder, scale in zip(ladders, scales, strict=True):
        energies = spectra[ladder.matrix.name].energies
        lost = 1 - energies.cumsum(0) / energies.sum()
        unit = max(float(lost[_reference(ladder) - 1]), 1e-6)
        end = ladder.matrix.largest_rank(centred=False)
        ranks = [rank for rank in ladder.ranks if rank is not None and least * end <= rank < 0.95 * end]
        found.ranks.append([None, *ranks])
        found.costs.append([ladder.matrix.cost(rank, centred=False) for rank in found.ranks[-1]])
        found.errors.append([0.0, *(scale * float(lost[rank - 1]) / unit for rank in ranks)])
    return found


def depth_weights(blocks: Sequence[int], alpha: float, gamma: float) -> list[float]:
    """`1 + gamma h_b` for the block of every matrix, `h` from 1 in the first to 0 in the last."""
    terms = np.array([1 / (k + 1) ** alpha for k in range(max(blocks) + 1)])
    rest = terms[::-1].cumsum()[::-1]
    depth = (rest - rest[-1]) / max(rest[0] - rest[-1], 1e-12)
    return [1 + gamma * float(depth[block]) for block in blocks]


def least_error(choices: Choices, weights: Sequence[float], budget: int) -> list[int | None]:
    """One rank per matrix with the least weighted sum of errors whose costs are within the budget."""
    ranks = [rank for each in choices.ranks for rank in each]
    owners = np.repeat(np.arange(len(choices.ranks)), [len(each) for each in choices.ranks])
    errors = np.array([error for each in choices.errors for error in each]) * np.asarray(weights)[owners]
    costs = np.array([cost for each in choices.costs for cost in each], dtype=float)
    one_each = csr_array((np.ones(len(owners)), (owners, np.arange(len(owners)))))
    limits = [LinearConstraint(one_each, 1, 1), LinearConstraint(costs[None] / budget, -np.inf, 1.0)]
    scale = max(float(errors.max()), 1e-300)
    solved = milp(errors / scale, constraints=limits, integrality=np.ones(len(owners)), bounds=Bounds(0, 1))
    if solved.x is None:
        raise ValueError(f"no allocation within {budget:,} parameters: {solved.message}")
    return [ranks[place] for place in np.flatnonzero(solved.x > 0.5)]


def divergence(dense: Float[Tensor, "s t v"], compressed: Float[Tensor, "s t v"]) -> float:
    """`KL(dense | compressed)` in nats, mean over tokens, of logits over the temperature."""
    said, meant = ((logits / TEMPERATURE).log_softmax(-1).flatten(0, 1) for logits in (compressed, dense))
    return float(kl_div(said, meant, reduction="batchmean", log_target=True))


def _reference(ladder: Ladder) -> int:
    return max(1, int(REFERENCE * ladder.matrix.largest_rank(centred=False)))


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokens: Int[Tensor, "s t"]) -> Float[Tensor, "s t v"]:
    return torch.cat([model(batch, use_cache=False).logits for batch in torch.split(tokens, 8)])
