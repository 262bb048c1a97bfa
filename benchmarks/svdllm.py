"""The published recipe of SVD-LLM (arXiv 2403.07378), as its public code computes it: the baseline of `benchmarks/recipe.py`.

After the paper's algorithms 1 and 2 and `SVDLLM.py` of https://github.com/AIoT-MLSys-Lab/SVD-LLM (`profle_svdllm_low_resource`,
`whitening`), whose order of work, precisions and lifetimes it keeps: block by block and sequence by sequence, `X^T X` of the input of every
linear in float32; its Cholesky factor `S` in float64, with the eigenvalues shifted above zero where there is none; the factors of all
blocks kept; then for every matrix the inverse of `S` in float64, the SVD of `W S` in float32, and the factors `U sqrt(s)` and `sqrt(s) V
S^-1`. Where it leaves a choice, the cheaper one is taken (sums in place).
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from mgaa.models.lowrank import Factors, LowRankLinear

SHIFT = 1e-6
"""Value of the least eigenvalue if `X^T X` has no Cholesky factor, and shift of a factor that has no inverse."""


class _Caught(Exception):  # noqa: N818 (not an error: leaves the forward of a model before its first block)
    pass


class _Catcher(nn.Module):
    """Replacement of the first block that keeps its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []
        self.named: list[dict[str, Any]] = []

    def forward(self, hidden: Tensor, **named: Any) -> None:
        self.inputs.append(hidden)
        self.named.append(named)
        raise _Caught


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers of a block by name."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


@torch.no_grad()
def profiled(model: LlamaForCausalLM, tokens: Int[Tensor, "s t"]) -> dict[str, Float[Tensor, "n n"]]:
    """Cholesky factor of `X^T X` of every linear layer of the blocks, float64, by its name."""
    hidden, named = _caught(model, tokens)
    outputs = torch.zeros_like(hidden)
    found: dict[str, Tensor] = {}
    for index, block in enumerate(model.model.layers):
        sums = {name: torch.zeros(linear.in_features, linear.in_features) for name, linear in linears(block).items()}

        def hook(_: nn.Module, given: tuple[Tensor, ...], __: Tensor, into: Tensor) -> None:
            x = given[0].float().flatten(0, 1)
            into.addmm_(x.T, x)

        handles = [
            linear.register_forward_hook(lambda *given, into=sums[name]: hook(*given, into=into))
            for name, linear in linears(block).items()
        ]
        for sequence, arguments in enumerate(named):
            outputs[sequence] = block(hidden[sequence].unsqueeze(0), **arguments)[0]
        for handle in handles:
            handle.remove()
        for name in list(sums):
            found[f"{index}.{name}"] = _cholesky(sums.pop(name).double())
        hidden = outputs
    return found


def _caught(model: LlamaForCausalLM, tokens: Int[Tensor, "s t"]) -> tuple[Float[Tensor, "s t h"], list[dict[str, Any]]]:
    catcher, first = _Catcher(), model.model.layers[0]
    model.model.layers[0] = catcher
    for sequence in tokens:
        with contextlib.suppress(_Caught):
            model(sequence.unsqueeze(0), use_cache=False)
    model.model.layers[0] = first
    return torch.cat(catcher.inputs), catcher.named


def _cholesky(moment: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    try:
        return torch.linalg.cholesky(moment)
    except torch.linalg.LinAlgError:
        least = torch.linalg.eigvalsh(moment)[0]
        return torch.linalg.cholesky(moment + (SHIFT - least) * torch.eye(len(moment)))


@torch.no_grad()
def whiten_(model: LlamaForCausalLM, profile: Mapping[str, Float[Tensor, "n n"]], compression: float) -> None:
    """Replace every linear layer of the blocks by factors of the uniform rank."""
    for index, block in enumerate(model.model.layers):
        for name, linear in linears(block).items():
            factors = _factors(linear.weight, profile[f"{index}.{name}"], rank(linear, compression))
            block.set_submodule(name, LowRankLinear.from_factors(factors))


def rank(linear: nn.Linear, compression: float) -> int:
    """The uniform rank of a matrix."""
    m, n = linear.weight.shape
    return int(m * n * (1 - compression) / (m + n))


def _factors(weight: Float[Tensor, "m n"], cholesky: Float[Tensor, "n n"], kept: int) -> Factors:
    try:
        inverse = torch.linalg.inv(cholesky)
    except torch.linalg.LinAlgError:
        cholesky = cholesky + SHIFT * torch.eye(len(cholesky))
        inverse = torch.linalg.inv(cholesky)
    whitened, back = weight.float() @ cholesky.float(), inverse.float()
    u, s, v = torch.linalg.svd(whitened, full_matrices=False)
    root = s[:kept].sqrt()
    A = root.unsqueeze(1) * (v[:kept] @ back)
    return Factors(A=A.to(weight.dtype), B=(u[:, :kept] * root).to(weight.dtype).contiguous())
