"""Statistics of the backbone, by one worker or by several that share the sequences; the artifact is the same.

With `statistics.gradients` the second moments of the gradients join them, by one worker.
"""

from typing import Any

from prefect import unmapped

from tasks.cache.artifact import Artifact, Store
from tasks.config.parameters import Parameters
from tasks.planning.preflight import check_gradients
from tasks.steps.calibrate import calibrate
from tasks.steps.calibrate_share import calibrate_share
from tasks.steps.differentiate import differentiate
from tasks.steps.merge_shares import merge_shares


def calibrated(p: Parameters, store: Store, backbone: Artifact, tokens: Artifact, device: str) -> Artifact:
    """The artifact `statistics` of the calibration tokens.

    Raises:
        UsageError: more shares than the sequences can be cut into, or gradients that cannot be measured.
    """
    if not p.statistics.gradients:
        return measured(p, store, backbone, tokens, device)
    check_gradients(store, backbone, tokens)
    statistics = measured(p, store, backbone, tokens, device)
    found: Artifact = differentiate(
        store, backbone, tokens, statistics, batch_size=p.statistics.batch_size, device=device
    )
    return found


def measured(p: Parameters, store: Store, backbone: Artifact, tokens: Artifact, device: str) -> Artifact:
    """The same without gradients."""
    given = p.statistics.model_dump(exclude={"shards", "gradients"})
    shards = p.statistics.shards
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
