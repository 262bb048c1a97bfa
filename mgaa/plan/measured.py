"""Plans of the measurements on the dense model: the making and the check of its weights, statistics, and gradients."""

from math import log2

from mgaa.checkpoints.gguf import LARGEST
from mgaa.plan.layout import Block, Layout, Moment
from mgaa.plan.settings import Settings, StageCost
from mgaa.plan.sizes import (
    DOUBLE,
    SINGLE,
    activation_bytes,
    forward_work,
    gradient_bytes,
    model_bytes,
    statistics_bytes,
)
from mgaa.statistics.accumulate import PANELS
from mgaa.statistics.shares import Share


def dequantize(layout: Layout, settings: Settings) -> StageCost:
    """Plan `mgaa.checkpoints.gguf`: a block, or what is outside the blocks, in float32 and rounded; one file is joined in memory."""
    largest = max(layout.largest, layout.rest)
    joined = layout.weights if layout.weights <= LARGEST else 0
    host = max(largest + largest * SINGLE // layout.itemsize, joined)
    return StageCost("dequantize", 0, host, layout.weights, joined, {}, settings.gguf + joined)


def load(layout: Layout) -> StageCost:
    """Plan the check of the weights block by block, with the next block read ahead (`mgaa.blocks.offload`)."""
    device = layout.rest + layout.largest
    return StageCost("load backbone", device, layout.largest, 0, 0, {}, 2 * layout.weights)


def calibrate(layout: Layout, settings: Settings) -> StageCost:
    """Plan `mgaa.statistics.calibration`, `mgaa.statistics.hooks` and `mgaa.statistics.accumulate`."""
    share = Share(settings.samples, 0, settings.shards)
    batch = max(map(len, share.batches(settings.batch_size))) * settings.length
    hidden = settings.samples * settings.length * layout.hidden * layout.itemsize
    pending = (
        3 * batch * layout.hidden * layout.itemsize
    )  # being written, and waiting to be (`mgaa.blocks.hidden_states`)
    worst = max(_block_calibration(layout, settings, block, batch) for block in layout.blocks)
    device, host = model_bytes(layout, settings)
    host += pending if settings.accelerator else 0
    tokens = settings.samples * settings.length
    return StageCost(
        "calibrate",
        device * (settings.shards if settings.stream else 1)
        + settings.shards * worst
        + (hidden if settings.hidden == "device" else 0),
        host + (hidden if settings.hidden == "host" else 0),
        sum(statistics_bytes(block, settings) for block in layout.blocks),
        2 * hidden,
        {
            "forward": sum(forward_work(layout, block, tokens, settings.length) for block in layout.blocks),
            "double": sum(tokens * _moment_work(moment) for block in layout.blocks for moment in block.moments),
        },
        layout.weights,
    )


def _block_calibration(layout: Layout, settings: Settings, block: Block, batch: int) -> int:
    """Return the bytes besides the weights and the waiting hidden states."""
    share = Share(settings.samples, 0, settings.shards)
    branches = 1 + int(log2(len(share.parts)))  # of the tree, and the current part
    groups = min(settings.groups, settings.samples)
    sums = sum(DOUBLE * (moment.d * (moment.d + groups + 1) + 3 * moment.n) for moment in block.moments)
    watched = 4 * batch * layout.hidden * layout.itemsize  # the stream around the sublayers
    inside = activation_bytes(layout, block, batch)
    entering = (
        batch * (3 * layout.hidden + block.widest) * layout.itemsize
    )  # of those, what the input of a linear leaves
    sequence = DOUBLE * settings.length * max(3 * moment.n + 2 * moment.d for moment in block.moments)
    if layout.itemsize < SINGLE:  # weight and input of an output side that the forward pass has rounded
        narrow = [moment.n * (moment.rows + settings.length) for moment in block.moments if moment.rows]
        sequence += SINGLE * max(narrow, default=0)
    largest = max(moment.d for moment in block.moments)
    finishing = sums + DOUBLE * largest * largest + sums  # sums, covariances, one triangle
    saving = int(1.5 * sums) + int(1.5 * DOUBLE * largest * largest)  # packed, with indices
    return max(branches * sums + watched + max(inside, entering + sequence), finishing, saving)


def differentiate(layout: Layout, settings: Settings) -> StageCost:
    """Plan `mgaa.statistics.gradients` and `mgaa.statistics.gradient_hooks`.

    A forward pass keeps the states at the input of every block, and a backward pass follows.
    """
    length, tokens = settings.length, settings.samples * settings.length
    size = min(settings.batch_size, max(1, 2**27 // (length * layout.vocabulary)))
    batch = max(map(len, Share(settings.samples).batches(size))) * length
    hidden = (len(layout.blocks) + 2) * tokens * layout.hidden * layout.itemsize  # gradients wait as one more
    head = 2 * batch * (layout.vocabulary * (layout.itemsize + SINGLE) + 2 * layout.hidden * layout.itemsize)
    worst = max(head, *(_block_differentiation(layout, block, batch, length) for block in layout.blocks))
    device, host = model_bytes(layout, settings)
    forward = (
        3 * sum(forward_work(layout, block, tokens, length) for block in layout.blocks) + 6.0 * layout.head * tokens
    )
    products = sum((1 + 1 / PANELS) * matrix.m**2 for block in layout.blocks for matrix in block.matrices)
    statistics = sum(statistics_bytes(block, settings) for block in layout.blocks)
    return StageCost(
        "differentiate",
        device + worst + (hidden if settings.states == "device" else 0),
        host + (hidden if settings.states == "host" else 0),
        statistics + sum(gradient_bytes(block) for block in layout.blocks),
        hidden,
        {"forward": forward + tokens * products},
        2 * layout.weights + statistics,
    )


def _block_differentiation(layout: Layout, block: Block, batch: int, length: int) -> int:
    """Return the bytes besides the weights and the waiting hidden states: autograd's activations of a block, and the sums."""
    sums = DOUBLE * sum(matrix.m**2 for matrix in block.matrices)
    widest = max(matrix.m for matrix in block.matrices)
    norms = 2 * batch * layout.hidden * SINGLE
    inside = 2 * activation_bytes(layout, block, batch) + norms + 2 * DOUBLE * length * widest
    saving = sums // 2 + 2 * DOUBLE * widest**2 + 2 * DOUBLE * sum(moment.d**2 for moment in block.moments)
    return sums + max(inside, saving)


def _moment_work(moment: Moment) -> float:
    """Return the work per token: the upper panels of a product, and on the output side the product with the weight."""
    return (1 + 1 / PANELS) * moment.d**2 + 2 * moment.rows * moment.n
