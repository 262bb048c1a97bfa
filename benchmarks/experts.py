"""Estimation for experts with few tokens: a dense backbone whose FFN inputs are thinned out, at random (which a router does not do).

    python benchmarks/experts.py path/to/backbone text.txt

For three blocks and for both inputs of the FFN, factors at 80 % of break-even are made from the covariance of few tokens, plain, shrunk
towards its own diagonal (target D of Schaefer and Strimmer, 2005) and shrunk towards an isotropic one (`mgaa.statistics`). The table shows
the output error on other tokens relative to factors made from all tokens: the geometric mean over blocks, inputs and three draws.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mgaa.checkpoints.save import load
from mgaa.decomposition.linalg import decompose
from mgaa.factors import factorize
from mgaa.factors.afm import metric
from mgaa.models.architectures import decoder_blocks
from mgaa.statistics.statistics import Accumulator, InputStatistics

LENGTH, SEQUENCES, HELD_OUT, DRAWS = 256, 64, 8000, 3
TOKENS = (4, 16, 64, 128, 256, 512)


def main(source: str, text: str) -> None:
    """Print a row per number of tokens, with a column per estimator."""
    ways = {"plain": plain, "diagonal, 2": diagonal(2), "diagonal, 4": diagonal(4)}
    ways |= {f"isotropic, {n}": isotropic(n) for n in (2, 4, 8)}
    print("tokens  " + "  ".join(f"{name:>12}" for name in ways))
    inputs = list(ffn_inputs(source, text))
    for tokens in TOKENS:
        cells = [math.exp(sum(excess(w, x, tokens, way) for w, x in inputs) / len(inputs)) for way in ways.values()]
        print(f"{tokens:6}  " + "  ".join(f"{cell:12.2f}" for cell in cells))


def ffn_inputs(source: str, text: str) -> list[tuple[Tensor, Tensor]]:
    """Weight and input of `gate_proj` and `down_proj` in the first, a middle and the last block, float64."""
    model, tokenizer = load(source, dtype="float32", device="cpu")
    with open(text, encoding="utf-8") as file:
        ids = tokenizer(file.read(40 * LENGTH * SEQUENCES), add_special_tokens=False)["input_ids"]
    blocks, seen = decoder_blocks(model), {}
    for index in (0, len(blocks) // 2, len(blocks) - 1):
        for name in ("gate_proj", "down_proj"):
            linear = blocks[index].get_submodule(f"mlp.{name}")
            linear.register_forward_pre_hook(lambda layer, arguments: seen.update({layer: arguments[0]}))
    with torch.no_grad():
        model(torch.tensor(ids[: LENGTH * SEQUENCES]).reshape(SEQUENCES, LENGTH))
    return [(layer.weight.double(), x.flatten(0, 1).double()) for layer, x in seen.items()]


def excess(weight: Tensor, x: Tensor, tokens: int, way: Callable[[Tensor, Tensor], InputStatistics]) -> float:
    """Mean logarithm of the held-out error, relative to factors from all other tokens."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    test, train = x[order[:HELD_OUT]], x[order[HELD_OUT:]]
    draws = [train[torch.randperm(len(train), generator=generator)[:tokens]] for _ in range(DRAWS)]
    best = error(weight, plain(weight, train), test)
    return sum(math.log(error(weight, way(weight, draw), test) / best) for draw in draws) / DRAWS


def error(weight: Tensor, statistics: InputStatistics, test: Tensor) -> float:
    """Squared output error on `test` of factors at 80 % of break-even."""
    rank = int(0.8 * weight.numel() / sum(weight.shape))
    factors = factorize(weight, None, decompose(weight, metric(statistics)), rank)
    assert factors.bias is not None
    return float((test @ weight.T - test @ factors.A.T @ factors.B.T - factors.bias).square().sum())


def plain(weight: Tensor, x: Tensor, minimum: float = 0.0) -> InputStatistics:
    """Statistics of the narrower side, as the library computes them."""
    accumulator = Accumulator("x", 1, 1, weight if weight.shape[0] < weight.shape[1] else None, minimum)
    accumulator.update(0, x)
    return accumulator.finish()


def isotropic(minimum: float) -> Callable[[Tensor, Tensor], InputStatistics]:
    """The library's shrinkage below `minimum` tokens per channel."""
    return lambda weight, x: plain(weight, x, minimum)


def diagonal(minimum: float) -> Callable[[Tensor, Tensor], InputStatistics]:
    """Shrinkage with the same weight towards the diagonal."""

    def way(weight: Tensor, x: Tensor) -> InputStatistics:
        found = plain(weight, x)
        share = max(0.0, 1 - len(x) / (minimum * len(found.covariance)))
        variance = (found.mean_square - found.mean.square()).clamp(min=0.0)
        target = variance.diag() if found.side == "input" else (weight * variance) @ weight.T
        return replace(found, covariance=(1 - share) * found.covariance + share * target)

    return way


if __name__ == "__main__":
    main(*sys.argv[1:])
