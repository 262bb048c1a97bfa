"""The plan of factors that are fitted to the dense model, behind compressed blocks (`mgaa.anchoring`, tasks/line.py).

Legend: m outputs, n inputs, p = min(m, n), k = n or m (where what is missing is measured).
"""

from math import log2

from mgaa.budget import Matrix
from mgaa.linalg import working_bytes
from mgaa.moments import PANELS, Share
from mgaa.plan.layout import Block, Layout
from mgaa.plan.settings import Settings, Stage
from mgaa.plan.sizes import (
    DOUBLE,
    SINGLE,
    activation_bytes,
    basis_vectors,
    forward_work,
    gradient_bytes,
    held,
    statistics_bytes,
)
from mgaa.shortcut import waiting_bytes


def anchor(layout: Layout, settings: Settings) -> Stage:
    """Both models side by side, one block after the other and in it one stage after the other, for each model that is made."""
    tokens = settings.samples * settings.length
    batch = max(map(len, Share(settings.samples).batches(settings.batch_size))) * settings.length
    roomy = settings.anchored == "device"
    hidden = tokens * layout.hidden * layout.itemsize
    waiting = waiting_bytes(tokens, layout.hidden, max(block.widest for block in layout.blocks), layout.itemsize)
    worst = max(_block_anchoring(layout, settings, block, batch) for block in layout.blocks)
    device, host = held(layout, settings)
    beside = (
        layout.largest if settings.stream else 0
    )  # the block of the twin, whose other tensors are those of the model
    work = [_block_work(layout, settings, block, tokens) for block in layout.blocks]
    read = settings.models * (
        layout.weights
        + sum(statistics_bytes(block, settings) + settings.gradients * gradient_bytes(block) for block in layout.blocks)
    )
    made = (1 - settings.compression) * sum(block.parameters for block in layout.blocks) * layout.itemsize
    return Stage(
        "anchor",
        device + beside + worst + (waiting if roomy else 0),
        host + beside + (2 * hidden if settings.anchored == "host" else 0),
        settings.models * int(made),
        4 * hidden,  # of both models, the generation before until the next one is complete
        {kind: settings.models * sum(each[kind] for each in work) for kind in work[0]},
        read,
    )


def _read_once(block: Block) -> list[Matrix]:
    """One matrix for each input of a block."""
    gated = any(matrix.role == "gate" for matrix in block.matrices)
    first = ("q", "o", "gate" if gated else "up", "down")
    return [matrix for matrix in block.matrices if matrix.role in first]


def _block_anchoring(layout: Layout, settings: Settings, block: Block, batch: int) -> int:
    """Bytes beside the weights and the waiting states: the sums of a stage and a pass, or what is fitted to them."""
    branches = 1 + int(log2(len(Share(settings.samples).parts)))
    groups = min(settings.groups, settings.samples)
    worst = 0
    for role in ("q", "o", "gate", "up", "down"):
        inputs = [matrix for matrix in _read_once(block) if matrix.role == role]
        if not inputs:
            continue
        sums = sum(DOUBLE * matrix.n * (matrix.n + groups + 4) for matrix in inputs)
        missing = sum(DOUBLE * (matrix.m if role in _WRITE else matrix.n) * matrix.n for matrix in inputs)
        sequence = settings.length * max(5 * DOUBLE * matrix.n + 2 * SINGLE * matrix.m for matrix in inputs)
        measuring = branches * sums + missing + activation_bytes(layout, block, batch) + sequence
        together = [matrix for matrix in block.matrices if matrix.role in _BESIDE[role]]
        given = sum(DOUBLE * (matrix.m * matrix.n) for matrix in together)
        regressing = max(DOUBLE * (4 * matrix.n**2 + 2 * matrix.m * matrix.n) for matrix in together)
        weighed = settings.gradients
        working = max(working_bytes(m.m, m.n, basis_vectors(m), weighed=weighed) for m in together)
        fitting = sums + missing + given + max(regressing, working + sum(2 * SINGLE * m.m * m.n for m in together))
        worst = max(worst, measuring, fitting)
    return worst + settings.gradients * sum(DOUBLE * matrix.m**2 for matrix in block.matrices)


_WRITE = ("o", "down")
_BESIDE = {"q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "up": ("up",), "down": ("down",)}
"""Roles of the matrices that are fitted together."""


def _block_work(layout: Layout, settings: Settings, block: Block, tokens: int) -> dict[str, float]:
    """Where nothing is kept between the stages, attention is computed four times, and the first half of the FFN twice."""
    passes = 1.0 if settings.anchored == "device" else 3.0
    forward = (2 - settings.compression) * passes * forward_work(layout, block, tokens, settings.length)
    double, eigen = 0.0, 0.0
    for matrix in _read_once(block):
        double += tokens * (1 + 1 / PANELS) * matrix.n**2
        forward += tokens * (4.0 * matrix.m if matrix.role in _WRITE else 2.0 * matrix.n) * matrix.n
    for matrix in block.matrices:
        p = min(matrix.m, matrix.n)
        double += matrix.n**3 / 3 + 4.0 * matrix.m * matrix.n**2 + 2.0 * p * p * matrix.n
        eigen += float(p) ** 3
    return {"forward": forward, "double": double, "eigen": eigen}
