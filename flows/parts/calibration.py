"""Statistics of the backbone, by one worker or by several that share the sequences; the artifact is the same.

With `statistics.gradients` the second moments of the gradients join them, by one worker.
"""

from typing import Any

from prefect import unmapped

from flows.parts.inputs import Inputs
from tasks.cache.artifact import Artifact
from tasks.planning.preflight import check_gradients
from tasks.steps.calibrate import calibrate
from tasks.steps.calibrate_share import calibrate_share
from tasks.steps.differentiate import differentiate
from tasks.steps.merge_shares import merge_shares


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
    params, store, backbone = inputs.params, inputs.store, inputs.backbone
    tokens, device = inputs.tokens["calibration"], inputs.device
    given = params.statistics.model_dump(exclude={"shards", "gradients"})
    shards = params.statistics.shards
    if shards == 1:
        alone: Artifact = calibrate(store, backbone, tokens, **given, device=device)
        return alone
    del given["inputs"]
    shared: dict[str, Any] = {
        "store": unmapped(store),
        "backbone": unmapped(backbone),
        "tokens": unmapped(tokens),
        "device": device,
    }
    unreached = given.pop("unreached")
    sums = calibrate_share.map(share=[*range(shards)], shares=shards, **given, **shared).result()
    del given["batch_size"]
    merged: Artifact = merge_shares(store, backbone, tokens, sums, **given, unreached=unreached, device=device)
    return merged
