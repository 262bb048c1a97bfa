"""The two levels rehearsed right after the backbone is loaded, so that a mistake in the parameters costs no calibration.

No step: it leaves nothing, and takes milliseconds.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.records import backbone_matrices


def rehearse(
    store: Store,
    backbone: Artifact,
    factors: tuple[str, Mapping[str, Any]],
    models: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> None:
    """Refuse what `allocate_ratios` and `allocate_ranks` would refuse after the calibration (`mgaa.levels`).

    Args:
        factors: the factorizer and its options.
        models: the plain arguments of the two steps, for every model.

    Raises:
        UsageError: an option is out of range, the compression out of reach, or a file for another model.
        InputError: a file that a method reads is missing or damaged.
    """
    from mgaa import levels

    matrices = backbone_matrices(store, backbone)
    for level1, level2 in models:
        levels.rehearse(
            matrices,
            level1["compression"],
            factors=factors,
            ratios=(level1["method"], {**level1["options"], "band": level1["band"]}),
            ranks=(level2["method"], level2["options"]),
            multiple=level2["multiple"],
        )
