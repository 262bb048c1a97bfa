"""Bytes and arithmetic shared by several stages."""

from mgaa.budget import Matrix
from mgaa.plan.layout import Block, Layout
from mgaa.plan.settings import Settings

DOUBLE, SINGLE = 8, 4
"""Bytes of a number."""


def model_bytes(layout: Layout, settings: Settings) -> tuple[int, int]:
    """Return the bytes of the model on the device and on the host while a stage goes block by block, the next block read ahead."""
    if not settings.stream:
        return layout.weights, 0
    return layout.rest + layout.largest, layout.largest if len(layout.blocks) > 1 else 0


def activation_bytes(layout: Layout, block: Block, tokens: int) -> int:
    """Return the bytes of a block's activations: the stream, its norm, and in the FFN gate, its activation, up and their product."""
    return tokens * (3 * layout.hidden + 3 * block.widest) * layout.itemsize


def statistics_bytes(block: Block, settings: Settings) -> int:
    """Return the bytes of the statistics of a block in a file: packed triangles, diagonals, means of groups."""
    groups = min(settings.groups, settings.samples)
    return sum(DOUBLE * (m.d * (m.d + 1) // 2 + 3 * m.n + groups * m.d) for m in block.moments)


def gradient_bytes(block: Block) -> int:
    """Return the bytes of the gradient moments of a block in a file: packed triangles."""
    return sum(DOUBLE * matrix.m * (matrix.m + 1) // 2 for matrix in block.matrices)


def basis_bytes(matrix: Matrix, settings: Settings) -> int:
    """Return the bytes of a decomposition in a file: energies, basis and, with weighted errors, dual basis and input mean."""
    basis = SINGLE * matrix.m * basis_vectors(matrix.m, matrix.n)
    weighed = basis + DOUBLE * matrix.n if settings.gradients else 0
    return basis + weighed + DOUBLE * min(matrix.m, matrix.n)


def forward_work(layout: Layout, block: Block, tokens: int, length: int) -> float:
    """Return the operations of a block on these tokens, in sequences of that length."""
    return 2.0 * block.parameters * tokens + 4.0 * tokens * length * layout.hidden


def basis_vectors(m: int, n: int) -> int:
    """Return the number of basis vectors of a matrix of this shape, up to break-even."""
    return max(1, (m * n - 1) // (m + n))


def compressed_bytes(layout: Layout, settings: Settings) -> int:
    """Return the bytes of a compressed checkpoint."""
    removed = settings.compression * sum(block.parameters for block in layout.blocks) * layout.itemsize
    return layout.weights - int(removed)
