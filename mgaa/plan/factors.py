"""Plans of decompositions, and of the factors sliced from them.

Legend: m outputs, n inputs, p = min(m, n).
"""

from mgaa.budget import Matrix
from mgaa.decomposition.cuda_streams import max_concurrent
from mgaa.decomposition.linalg import working_bytes
from mgaa.plan.layout import Block, Layout
from mgaa.plan.settings import Settings, StageCost
from mgaa.plan.sizes import DOUBLE, basis_bytes, basis_vectors, gradient_bytes, statistics_bytes


def decompose(layout: Layout, settings: Settings) -> StageCost:
    """Plan `mgaa.decomposition.linalg` and `mgaa.decomposition.cuda_streams`.

    Each worker holds the statistics and the weights of a block, the finished bases, and the decompositions in flight.
    """
    model = layout.weights if not settings.stream else layout.rest + settings.workers * layout.largest
    worst = max(_block_decomposition(block, settings, settings.room - model) for block in layout.blocks)
    work = {"double": 0.0, "eigen": 0.0}
    for block in layout.blocks:
        for m in block.matrices:
            p = min(m.m, m.n)
            work["double"] += 2.0 * p * m.n * m.n + 1.25 * p * p * m.n
            if m.m > m.n:
                work["double"] += 2.0 * m.m * m.n**2 + 4.0 * m.m * m.n * basis_vectors(m.m, m.n)
            work["eigen"] += float(p) ** 3
    spectra = sum(basis_bytes(matrix, settings) for block in layout.blocks for matrix in block.matrices)
    read = layout.weights + sum(
        statistics_bytes(block, settings) + settings.gradients * gradient_bytes(block) for block in layout.blocks
    )
    return StageCost("decompose", model + settings.workers * worst, 0, spectra, 0, work, read)


def _block_decomposition(block: Block, settings: Settings, room: int) -> int:
    """Return the bytes besides the model: statistics, bases, and the largest decompositions, as many as run at a time."""
    statistics = sum(DOUBLE * moment.d * moment.d for moment in block.moments)
    statistics += settings.gradients * sum(DOUBLE * matrix.m**2 for matrix in block.matrices)
    bases = sum(basis_bytes(matrix, settings) for matrix in block.matrices)
    outputs = {(moment.rows, moment.n) for moment in block.moments}
    sizes = [
        working_bytes(
            m.m,
            m.n,
            basis_vectors(m.m, m.n),
            side="output" if (m.m, m.n) in outputs else "input",
            weighed=settings.gradients,
        )
        for m in block.matrices
    ]
    count = max_concurrent(sizes, room - statistics - bases) if settings.accelerator else 1
    return statistics + bases + sum(sorted(sizes, reverse=True)[:count])


def factorize(layout: Layout, settings: Settings) -> StageCost:
    """Plan `mgaa.factors`: each worker holds the bases and weights of a block, its factors, and one matrix in float64."""

    def rank(matrix: Matrix) -> float:
        return (1 - settings.compression) * matrix.parameters / (matrix.m + matrix.n)

    worst = 0.0
    work, factors = 0.0, 0.0
    for block in layout.blocks:
        bases = sum(basis_bytes(matrix, settings) for matrix in block.matrices)
        made = (1 - settings.compression) * block.parameters * layout.itemsize
        one = max(DOUBLE * (m.m * m.n + m.m * rank(m) + 2 * rank(m) ** 2 + 2 * rank(m) * m.n) for m in block.matrices)
        worst = max(worst, bases + made + one)
        factors += made
        work += sum(2.0 * m.m * m.n * rank(m) + 2.0 * rank(m) ** 2 * m.n for m in block.matrices)
    model = layout.weights if not settings.stream else layout.rest + settings.workers * layout.largest
    read = settings.models * sum(basis_bytes(matrix, settings) for block in layout.blocks for matrix in block.matrices)
    return StageCost(
        "factorize",
        model + settings.workers * int(worst),
        0,
        settings.models * int(factors),
        0,
        {"double": settings.models * work},
        read + settings.models * layout.weights,
    )
