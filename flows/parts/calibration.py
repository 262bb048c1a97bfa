"""Statistics of the backbone, by one worker or by several that share the sequences; the artifact is the same.

With `statistics.gradients` the second moments of the gradients join them, by one worker.
"""

from typing import TYPE_CHECKING

from prefect import unmapped

from flows.parts.inputs import Inputs
from tasks.cache.artifact import Artifact
from tasks.config.parameters import Parameters
from tasks.planning.preflight import check_gradients
from tasks.steps.calibrate import calibrate
from tasks.steps.calibrate_share import calibrate_share
from tasks.steps.differentiate import differentiate
from tasks.steps.merge_shares import merge_shares

if TYPE_CHECKING:
    from mgaa.statistics.calibration import CalibrationSettings


def measure_statistics(inputs: Inputs) -> Artifact:
    """The artifact `statistics` of the calibration tokens.

    Raises:
        UsageError: more shares than the sequences can be cut into, or gradients that cannot be measured.
    """
    given = inputs.params.statistics
    if not given.gradients:
        return measure_without_gradients(inputs)
    store, backbone, tokens = inputs.store, inputs.backbone, inputs.tokens["calibration"]
    check_gradients(store, backbone, tokens)
    statistics = measure_without_gradients(inputs)
    return differentiate(store, backbone, tokens, statistics, batch_size=given.batch_size, device=inputs.device)


def measure_without_gradients(inputs: Inputs) -> Artifact:
    """The statistics without gradients."""
    store, backbone, tokens = inputs.store, inputs.backbone, inputs.tokens["calibration"]
    given, settings, device = inputs.params.statistics, calibration_settings(inputs.params), inputs.device
    if given.shards == 1:
        return calibrate(store, backbone, tokens, inputs=given.inputs, calibration=settings, device=device)
    sums = calibrate_share.map(
        store=unmapped(store),
        backbone=unmapped(backbone),
        tokens=unmapped(tokens),
        share=[*range(given.shards)],
        shares=given.shards,
        groups=given.groups,
        batch_size=given.batch_size,
        expert_tokens=given.expert_tokens,
        device=device,
    ).result()
    return merge_shares(
        store,
        backbone,
        tokens,
        sums,
        groups=given.groups,
        expert_tokens=given.expert_tokens,
        unreached=given.unreached,
        device=device,
    )


def calibration_settings(params: Parameters) -> "CalibrationSettings":
    """The settings of the section `statistics`."""
    from mgaa.statistics.calibration import CalibrationSettings

    return CalibrationSettings(**params.statistics.model_dump(exclude={"inputs", "shards", "gradients"}))
