"""Plan of factors that are fitted to the dense model after compressed blocks (`mgaa.anchoring`, tasks/steps/block_state.py).

Legend: m outputs, n inputs, p = min(m, n), k = n or m (where the residual is measured).
"""

from math import log2

from mgaa.anchoring.sublayer_cache import cache_bytes
from mgaa.decomposition.linalg import working_bytes
from mgaa.plan.layout import Block, Input, Layout
from mgaa.plan.settings import Settings, StageCost
from mgaa.plan.sizes import DOUBLE, SINGLE, activation_bytes, basis_vectors, forward_work, gradient_bytes, model_bytes
from mgaa.statistics.accumulate import PANELS
from mgaa.statistics.shares import Share


def anchor(layout: Layout, settings: Settings) -> StageCost:
    """Plan anchoring: both models in parallel, block by block and stage by stage, for each model to make."""
    batch = max(map(len, Share(settings.samples).batches(settings.batch_size))) * settings.length
    state = layout.hidden * layout.itemsize
    hidden = settings.samples * settings.length * state
    worst = max(_block_bytes(layout, settings, block, batch) for block in layout.blocks)
    device, host = model_bytes(layout, settings)
    made = int((1 - settings.compression) * sum(block.parameters for block in layout.blocks) * layout.itemsize)
    # streamed, the twin holds one block, and every block is fetched for both models, once to measure and once to pass
    twin, fetched = (layout.largest, 4) if settings.stream else (made, 1)
    host += (
        3 * batch * state if settings.accelerator else 0
    )  # being written, and waiting to be (`mgaa.blocks.hidden_states`)
    work = [_block_work(layout, settings, block, batch) for block in layout.blocks]
    return StageCost(
        "anchor",
        device + twin + worst + (anchor_bytes(layout, settings) if settings.anchored == "device" else 0),
        host + (2 * hidden if settings.anchored == "host" else 0),
        settings.models * made,
        3 * hidden,  # of both models, and the previous generation of one
        {kind: settings.models * sum(operations[kind] for operations in work) for kind in work[0]},
        settings.models
        * (fetched * layout.weights + settings.gradients * sum(gradient_bytes(block) for block in layout.blocks)),
    )


def anchor_bytes(layout: Layout, settings: Settings) -> int:
    """Return the bytes of all tokens while a block is anchored with cached sublayer outputs."""
    return cache_bytes(settings.samples * settings.length, layout.hidden, layout.widest_written, layout.itemsize)


def _block_bytes(layout: Layout, settings: Settings, block: Block, batch: int) -> int:
    """Return the bytes besides the weights and the waiting states: of a stage that is measured or fitted, or of the block that is tuned."""
    stages = [_stage_bytes(layout, settings, block, stage, batch) for stage in block.stages]
    gradients = settings.gradients * sum(DOUBLE * matrix.m**2 for matrix in block.matrices)
    tuned = (1 - settings.compression) * block.parameters
    made = int(tuned * layout.itemsize)
    # a master, two moments, its gradient in both dtypes, and a copy; and the activations that autograd saves
    tuning = int(tuned * (4 * SINGLE + 2 * layout.itemsize)) + 2 * activation_bytes(layout, block, batch)
    return gradients + made + max(*stages, tuning if settings.refinement else 0)


def _stage_bytes(layout: Layout, settings: Settings, block: Block, stage: tuple[Input, ...], batch: int) -> int:
    branches = 1 + int(
        log2(len(Share(settings.samples).parts))
    )  # of the tree, and the current part (`mgaa.statistics.shares`)
    groups = min(settings.groups, settings.samples)
    sums = sum(DOUBLE * group.n * (group.n + groups + 4) for group in stage)
    products = sum(DOUBLE * group.n * _residual_channels(group, settings) for group in stage)
    sequence = settings.length * max(5 * DOUBLE * group.n + 2 * SINGLE * max(group.outputs) for group in stage)
    measuring = branches * sums + products + activation_bytes(layout, block, batch) + sequence
    shapes = [(m, group.n) for group in stage for m in group.outputs]
    weights = sum(m * n for m, n in shapes)
    at_outputs = sum(sum(group.outputs) * group.n for group in stage if not group.expert)
    regressing = max(DOUBLE * (3 * n * n + 2 * m * n) for m, n in shapes)
    working = max(working_bytes(m, n, basis_vectors(m, n), weighed=settings.gradients) for m, n in shapes)
    fitting = sums + DOUBLE * (at_outputs + weights) + max(regressing, working + 2 * SINGLE * weights)
    return max(measuring, fitting)


def _residual_channels(group: Input, settings: Settings) -> int:
    """Return the number of channels in which the residual of an input's linears is measured."""
    if group.expert:
        return 0
    return group.outputs[0] if group.writes and settings.to_stream else group.n


def _block_work(layout: Layout, settings: Settings, block: Block, batch: int) -> dict[str, float]:
    """Return operations by kind. Without cached sublayer outputs, attention is computed four times, and the first half of the FFN twice."""
    tokens = settings.samples * settings.length
    once, kept = forward_work(layout, block, tokens, settings.length), settings.anchored == "device"
    left = 1 - settings.compression
    forward = (1 + left) * once * (1 if kept else 3)
    # the error before and after, and the steps: a forward pass of the dense block, and a forward and a backward pass of the other
    forward += ((2 + settings.refinement * batch / tokens * 3) * left * once) if settings.refinement else 0.0
    forward += 0.0 if kept else settings.refinement * batch / tokens * once
    double, eigen = 0.0, 0.0
    for each in (each for stage in block.stages for each in stage):
        double += each.share * tokens * (1 + 1 / PANELS) * each.n**2
        forward += tokens * 2.0 * each.n * _residual_channels(each, settings)
        forward += tokens * 2.0 * each.n * each.outputs[0] if each.writes and settings.to_stream else 0.0
        for m in each.outputs:
            p = min(m, each.n)
            double += (0.0 if each.expert else each.n**3 / 3 + 4.0 * m * each.n**2) + 2.0 * p * p * each.n
            eigen += float(p) ** 3
    return {"forward": forward, "double": double, "eigen": eigen}
