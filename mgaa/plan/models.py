"""Plans of the stages that use compressed models: checkpoints, and their evaluation."""

from mgaa.plan.layout import Layout
from mgaa.plan.settings import Settings, StageCost
from mgaa.plan.sizes import SINGLE, activation_bytes, compressed_bytes, model_bytes

WHOLE = 5 * 10**9
"""Bytes of weights up to which a checkpoint is one file (`mgaa.checkpoints.save.save_blockwise`)."""


def assemble(layout: Layout, settings: Settings) -> StageCost:
    """Plan `mgaa.checkpoints.shards`: a block, the next one read ahead, and the one before it being written.

    Parts are joined where one file holds all.
    """
    size = compressed_bytes(layout, settings)
    model = layout.weights if not settings.stream else layout.rest  # loaded by the process for earlier stages
    return StageCost(
        "assemble",
        0,
        model + layout.rest + 3 * layout.largest,
        settings.models * size,
        size if size <= WHOLE else 0,
        {},
        settings.models * (layout.weights + size),
    )


def evaluate(layout: Layout, settings: Settings) -> StageCost:
    """Plan `mgaa.evaluation.perplexity` of the dense model and of each compressed one, which is loaded in addition to the backbone."""
    worst, hidden, work = 0, 0, 0.0
    for tokens, length, batch_size in settings.evaluation:
        batch = min(batch_size, max(1, 2**27 // (length * layout.vocabulary)), max(1, tokens // length)) * length
        logits = batch * layout.vocabulary * layout.itemsize * (2 if settings.stream else 1)
        inside = max(activation_bytes(layout, block, batch) for block in layout.blocks)
        worst = max(worst, logits + 3 * SINGLE * 2**22 + batch * layout.hidden * layout.itemsize, inside)
        hidden = max(hidden, tokens * layout.hidden * layout.itemsize)
        per_token = sum(2.0 * block.parameters for block in layout.blocks) + 2.0 * layout.head
        work += tokens * per_token
    loaded = layout.weights if not settings.stream else layout.rest
    device, host = model_bytes(layout, settings)
    waiting = hidden if settings.stream else 0
    return StageCost(
        "evaluate",
        loaded + device + worst + (waiting if settings.hidden == "device" else 0),
        host + (waiting if settings.hidden == "host" else 0),
        0,
        2 * waiting,
        {"forward": (settings.models + 1) * work},
        (settings.models + 1) * layout.weights,
    )


def export(layout: Layout, settings: Settings) -> StageCost:
    """Plan the copy of the method's checkpoint."""
    size = compressed_bytes(layout, settings)
    return StageCost("export", 0, 0, size, 0, {}, size)
