"""Steps 4 to 8 for one block behind compressed blocks (`mgaa.anchoring.sequential`): statistics to factors in one cached step.

Each block is keyed by the factors before it, so a killed run resumes at the block where it stopped (tasks/steps/block_state.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts.factors import write_factors
from tasks.artifacts.files import (
    RANKS,
    RATIOS,
    backbone_matrices,
    block_file,
    energy_file,
    rank_table,
    read_table,
    score_file,
    write_table,
)
from tasks.artifacts.ladders import target_of
from tasks.artifacts.specs import MethodSpec, TargetSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step
from tasks.steps.block_state import state_before

if TYPE_CHECKING:
    from mgaa.statistics.calibration import CalibrationSettings


@step(
    kind="factors",
    methods={"factors": "mgaa.factors", "ranks": "mgaa.ranks"},
    task_run_name="compress_block-{block}",
)
def compress_block(
    out: Path,
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    ratios: Artifact,
    before: Sequence[Artifact],
    *,
    block: int,
    factors: MethodSpec,
    ranks: MethodSpec,
    target: TargetSpec,
    calibration: "CalibrationSettings",
    device: str,
) -> None:
    """Measure, decompose, allocate and factorize `block`; write its factors, ranks, energies and channel scores.

    Args:
        before: the factors of the blocks before it, in order.
    """
    from mgaa.allocation.channels import save_scores
    from mgaa.anchoring.sequential import allowance
    from mgaa.anchoring.sequential import compress_block as compress
    from mgaa.blocks.offload import load_block
    from mgaa.factors import save_energies
    from mgaa.models.architectures import decoder_blocks

    goal = target_of(store, backbone, target)
    matrices, given = backbone_matrices(store, backbone), read_table(store, ratios, RATIOS)
    chosen = (factors.method, factors.options), (ranks.method, ranks.options)
    spent = sum(read_table(store, each, RANKS)["linear_parameters"] for each in before)
    recipe: dict[str, Any] = {
        "ratios": ratios.digest,
        "factors": chosen[0],
        "ranks": chosen[1],
        "target": (target.compression, target.multiple, target.channels, target.latency, target.spectrum),
    }
    with (
        state_before(store, backbone, tokens, before, recipe, calibration, device) as state,
        load_block(decoder_blocks(state.model)[block]),
    ):
        statistics = state.calibration.statistics(block)
        found = compress(state.model, block, statistics, matrices, given, goal, *chosen, spent=spent)
    write_factors(out / block_file(block), found.factors, found.kept)
    save_energies(found.spectra, out / energy_file(block))
    if found.scores:
        save_scores(found.scores, out / score_file(block))
    budget = allowance(matrices, given, target.compression, block)
    table = rank_table(found.ranks, budget=budget, channels=target.channels, latency=goal.latency)
    write_table(out / RANKS, table)
