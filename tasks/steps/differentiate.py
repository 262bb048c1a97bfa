"""Step 4b, differentiate: add the second moments of the output gradients to the statistics (`mgaa.statistics.gradients`)."""

from pathlib import Path
from typing import Any

from tasks.artifacts.backbone import backbone_model
from tasks.artifacts.calibration_input import sequences_of
from tasks.artifacts.files import block_file
from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import place_of_hidden
from tasks.cache.step import resuming_step
from tasks.steps.resumable_calibration import collect_blocks


@resuming_step(kind="statistics")
def differentiate(
    out: Path,
    unfinished: Path,
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    statistics: Artifact,
    *,
    batch_size: int,
    device: str,
) -> None:
    """Propagate the loss back through the blocks, from the last to the first; each is written before the one that feeds it starts."""
    from dataclasses import replace

    from mgaa.blocks.resume import atomic_file
    from mgaa.checkpoints.save import twin_of
    from mgaa.inputs.prompts import Prompts
    from mgaa.models.architectures import decoder_blocks
    from mgaa.statistics.gradients import stream_gradients
    from mgaa.statistics.statistics import BlockStatistics

    model = twin_of(backbone_model(store, backbone, device)[0])  # watched, which other steps must not see
    prompts = Prompts.of(sequences_of(store, tokens))
    states = prompts.tokens * (len(decoder_blocks(model)) + 1)  # those in front of every block are kept
    place = place_of_hidden(device, states * model.config.get_text_config().hidden_size * model.dtype.itemsize)
    given: dict[str, Any] = {"batch_size": batch_size, "place": place, "folder": unfinished / "pass"}
    # the statistics say already what becomes of experts that no token reaches
    for index, gradients in stream_gradients(model, prompts, unreached="dense", **given):
        measured = BlockStatistics.load(store.folder(statistics) / block_file(index))
        with atomic_file(unfinished / block_file(index)) as draft:
            replace(measured, gradients=gradients).save(draft)
        del gradients, measured  # while the next block is measured
    collect_blocks(unfinished, out)
