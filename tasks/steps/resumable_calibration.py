"""Calibration that resumes at the block where a killed run stopped, for the steps that measure statistics."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts.backbone import backbone_model, parts_of
from tasks.artifacts.calibration_input import sequences_of
from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import place_of_hidden

if TYPE_CHECKING:
    from mgaa.statistics.calibration import Calibration, CalibrationSettings


def start_calibrations(
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    unfinished: Path,
    settings: "CalibrationSettings",
    device: str,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[int, "Calibration"]]:
    """Start a calibration for every part of the model that is compressed, or resume it; with the number of the first block of that part."""
    from mgaa.checkpoints.save import twin_of
    from mgaa.inputs.prompts import Prompts
    from mgaa.models.architectures import stacks_of
    from mgaa.statistics.calibration import Calibration
    from mgaa.statistics.shares import Share

    model = twin_of(backbone_model(store, backbone, device)[0])  # watched, which other steps must not see
    prompts = Prompts.of(sequences_of(store, tokens))
    mine = Share(len(prompts), *share)
    size = prompts.tokens * model.config.get_text_config().hidden_size * model.dtype.itemsize // mine.of
    place = place_of_hidden(device, size)
    for stack in stacks_of(model, parts_of(store, backbone)):
        waiting: dict[str, Any] = {"place": place, "folder": unfinished / f"hidden-{stack.part}"}
        yield (
            stack.first,
            Calibration(model, prompts, settings, stack=stack, share=mine, **waiting),
        )


def remaining_blocks(calibration: "Calibration") -> Iterator[int]:
    """The blocks that are still to be measured; each is committed once its file is whole, which is when the next one is requested."""
    from mgaa.statistics.calibration import remaining_blocks

    for index in remaining_blocks(calibration):
        yield index
        calibration.commit()
    calibration.close()


def collect_blocks(unfinished: Path, out: Path) -> None:
    """Move the files of all blocks to where the step leaves them."""
    for path in sorted(unfinished.glob("block-*.safetensors")):
        os.replace(path, out / path.name)
