"""Steps 5 to 8 for one block behind the compressed blocks before it (`mgaa.anchoring.sequential`): statistics to factors in one cached
step.

Each block is keyed by the factors before it, so a killed run goes on at the block where it stopped (tasks/steps/block_state.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from tasks.artifacts.ladders import latency_of, pruning_of
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step
from tasks.steps.block_state import state_before


@step(
    kind="factors",
    methods={"method": "mgaa.factors", "rank_method": "mgaa.ranks"},
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
    method: str,
    options: dict[str, Any],
    rank_method: str,
    rank_options: dict[str, Any],
    compression: float,
    multiple: int | str,
    channels: dict[str, Any] | None,
    latency: dict[str, Any] | None,
    measuring: dict[str, Any],
    device: str,
) -> None:
    """Measure, decompose, allocate and factorize `block`; its factors, ranks, energies and channel scores.

    Args:
        before: the factors of the blocks before it, in order.
        measuring: arguments of `mgaa.statistics.calibration.CalibrationSettings`.
    """
    from mgaa.allocation.channels import save_scores
    from mgaa.anchoring.sequential import allowance
    from mgaa.anchoring.sequential import compress_block as compress
    from mgaa.blocks.offload import load_block
    from mgaa.factors import save_energies
    from mgaa.levels import Target
    from mgaa.models.architectures import decoder_blocks

    faster = latency_of(store, backbone, latency)
    target = Target(compression, multiple, pruning_of(channels), faster)
    matrices, given = backbone_matrices(store, backbone), read_table(store, ratios, RATIOS)
    chosen = (method, options), (rank_method, rank_options)
    spent = sum(read_table(store, each, RANKS)["linear_parameters"] for each in before)
    recipe: dict[str, Any] = {
        "ratios": ratios.digest,
        "factors": (method, options),
        "ranks": (rank_method, rank_options),
        "target": (compression, multiple, channels, latency),
        "measuring": measuring,
    }
    with (
        state_before(store, backbone, tokens, before, recipe, device) as state,
        load_block(decoder_blocks(state.model)[block]),
    ):
        statistics = state.calibration.statistics(block)
        found = compress(state.model, block, statistics, matrices, given, target, *chosen, spent=spent)
    write_factors(out / block_file(block), found.factors, found.kept)
    save_energies(found.spectra, out / energy_file(block))
    if found.scores:
        save_scores(found.scores, out / score_file(block))
    budget = allowance(matrices, given, compression, block)
    write_table(out / RANKS, rank_table(found.ranks, budget=budget, channels=channels, latency=faster))
