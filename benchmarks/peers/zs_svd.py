"""ZS-SVD (Abbasi et al., ICML 2026, arXiv 2602.02848): drop singular components whose predicted changes of the loss cancel.

From the paper and its code (https://github.com/mint-vu/Zero-Sum-SVD, `compression/importance.py`, `compression/planning.py`): with the
Cholesky factor `S` of `X X^T`, `W S = U diag(s) V^T` and the gradient `H = (dL/dW) S^-T` in whitened coordinates, dropping component i
changes the loss by `-s_i u_i^T H v_i` to first order. Every matrix offers its smallest singular value; of the offers whose sign brings the
running sum of changes back towards zero the one least in magnitude is dropped, of the other sign if there is none; parameters are saved
below break-even alone. At the end a matrix whose rank is still above break-even is dense again. One shot, zero-sum selection, factors
without bias, at least rank 1, and at a compression of 0.6 at least 0.3 of break-even are the settings of `scripts/run_one_shot.sh`.

Ours: `s_i v_i = S^T W^T u_i`, so the change is `-u_i^T (dL/dW) W^T u_i`, and neither `S` nor its inverse is formed; the gradient over all
calibration tokens, where the script takes one sequence of 2048 tokens; the exact count of parameters (theirs lags by one component per
matrix). Not here: the correction by a projected gradient between six stages, which their readme asks for beyond LLaMA-7B, and
quantization, which is no matter of ranks.
"""

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from math import ceil

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.peers.filling import Prepared, filled
from benchmarks.peers.gradients import pass_back
from mgaa.budget import Matrix, parameter_budget
from mgaa.checkpoints.save import apply_factors, twin_of
from mgaa.decomposition.linalg import Spectrum, decompose
from mgaa.factors import factorize_linear, whitened
from mgaa.models.architectures import matrices_of
from mgaa.ranks import ladders_of
from mgaa.statistics.calibration import stream_statistics


def prepare(model: PreTrainedModel, tokens: Int[Tensor, "s t"]) -> Prepared:
    """Decompose the model in whitened coordinates and predict the importance of every component."""
    matrices = matrices_of(model)
    spectra: dict[str, Spectrum] = {}
    for index, block in enumerate(stream_statistics(model, tokens)):
        for matrix in (each for each in matrices if each.block == index):
            weight = model.get_submodule(matrix.name).weight.detach()
            spectra[matrix.name] = decompose(weight, whitened.metric(block.of(matrix.local)), name=matrix.name)
    gradients = weight_gradients(model, tokens, [matrix.name for matrix in matrices])
    changes = {
        name: changes_of(model.get_submodule(name).weight.detach(), gradients[name], spectrum.basis)
        for name, spectrum in spectra.items()
    }
    ladders = ladders_of(matrices, {name: each.energies for name, each in spectra.items()}, centred=False)

    def compressed(compression: float) -> PreTrainedModel:
        floor = 0.3 if compression >= 0.6 else 0.0
        ranks = zero_sum(matrices, changes, parameter_budget(matrices, compression), floor=floor)
        kept = filled("zs-svd", ladders, ranks, compression)
        low = {name: rank for name, rank in kept.items() if rank is not None}
        twin = twin_of(model)
        apply_factors(twin, {name: factorize_linear(model, name, spectra[name], rank) for name, rank in low.items()})
        return twin

    return compressed


def weight_gradients(
    model: PreTrainedModel, tokens: Int[Tensor, "s t"], names: Sequence[str]
) -> dict[str, Float[Tensor, "m n"]]:
    """Gradient of the mean loss of a token with respect to every weight, float64."""
    sums: dict[str, Tensor] = {}

    def add(name: str, x: Tensor, g: Tensor) -> None:
        sums[name] = sums.get(name, 0) + (g.flatten(0, 1).T @ x.flatten(0, 1)).double()

    count = pass_back(model, tokens, names, add)
    return {name: total / count for name, total in sums.items()}


def changes_of(
    weight: Float[Tensor, "m n"], gradient: Float[Tensor, "m n"], basis: Float[Tensor, "m p"]
) -> Float[Tensor, " p"]:
    """Change of the loss from dropping each component, to first order: `-u_i^T (dL/dW) W^T u_i`."""
    U = basis.double()
    return -((U.T @ gradient.double()) * (U.T @ weight.double())).sum(1)


def zero_sum(
    matrices: Sequence[Matrix], changes: Mapping[str, Float[Tensor, " p"]], budget: int, *, floor: float = 0.0
) -> dict[str, int | None]:
    """Drop components until the budget holds; `floor` is the share of break-even that every matrix keeps."""
    ranks = {matrix.name: len(changes[matrix.name]) for matrix in matrices}
    ends = {each.name: max(1, ceil(floor * each.largest_rank(centred=False))) for each in matrices}
    heaps: dict[bool, list[tuple[float, int, float]]] = {True: [], False: []}

    def offer(place: int) -> None:
        name = matrices[place].name
        if ranks[name] > ends[name]:
            change = float(changes[name][ranks[name] - 1])
            heappush(heaps[change >= 0], (abs(change), place, change))

    for place in range(len(matrices)):
        offer(place)
    spent, drift = sum(matrix.parameters for matrix in matrices), 0.0
    while spent > budget and (heap := heaps[drift <= 0] or heaps[drift > 0]):
        _, place, change = heappop(heap)
        matrix = matrices[place]
        spent -= _cost(matrix, ranks[matrix.name])
        ranks[matrix.name] -= 1
        spent += _cost(matrix, ranks[matrix.name])
        drift += change
        offer(place)
    return {each.name: _useful(each, ranks[each.name]) for each in matrices}


def _useful(matrix: Matrix, rank: int) -> int | None:
    return rank if rank <= matrix.largest_rank(centred=False) else None


def _cost(matrix: Matrix, rank: int) -> int:
    return matrix.cost(_useful(matrix, rank), centred=False)
