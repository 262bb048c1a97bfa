"""Steps 5 to 8 for one block behind the compressed blocks before it (`mgaa.sequential`): statistics to factors in one cached step.

Each block is keyed by the factors before it, so a killed run goes on at the block where it stopped. The calibration tokens wait in front
of the next block in this process; a process that has none sends them through the blocks before once more, which gives the same bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from tasks.artifact import Artifact, Store
from tasks.assemble import restore_
from tasks.factorize import write_factors
from tasks.ladders import latency_of, pruning_of
from tasks.load_backbone import backbone_model
from tasks.records import (
    RANKS,
    RATIOS,
    backbone_matrices,
    block_file,
    energy_file,
    rank_table,
    score_file,
    table,
    token_windows,
    write_table,
)
from tasks.step import step

if TYPE_CHECKING:
    from mgaa.streaming import Calibration


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
        measuring: arguments of `mgaa.streaming.Measuring`.
    """
    from mgaa.channels import save_scores
    from mgaa.factors import save_energies
    from mgaa.levels import Target
    from mgaa.sequential import allowance
    from mgaa.sequential import compress_block as compress

    faster = latency_of(store, backbone, latency)
    target = Target(compression, multiple, pruning_of(channels), faster)
    matrices, given = backbone_matrices(store, backbone), table(store, ratios, RATIOS)
    chosen = (method, options), (rank_method, rank_options)
    spent = sum(table(store, each, RANKS)["linear_parameters"] for each in before)
    with in_front_of(store, backbone, tokens, before, measuring, device) as line:
        statistics = line.calibration.statistics(block)
        found = compress(line.model, block, statistics, matrices, given, target, *chosen, spent=spent)
    write_factors(out / block_file(block), found.factors, found.kept)
    save_energies(found.spectra, out / energy_file(block))
    if found.scores:
        save_scores(found.scores, out / score_file(block))
    budget = allowance(matrices, given, compression, block)
    write_table(out / RANKS, rank_table(found.ranks, budget=budget, channels=channels, latency=faster))


@dataclass
class Line:
    """A model whose first blocks are compressed, with the calibration tokens in front of the next one."""

    key: tuple[Any, ...]
    model: Any
    calibration: "Calibration"


_one_at_a_time = Lock()
_line: list[Line] = []
"""The line that this process has, if any."""


@contextmanager
def in_front_of(
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    before: Sequence[Artifact],
    measuring: Mapping[str, Any],
    device: str,
) -> Iterator[Line]:
    """The line behind these compressed blocks: the one of this process as far as it goes, else one from the start.

    It is dropped where something fails in this block, and behind the last block of the model.
    """
    common = (store, backbone, tokens, tuple(sorted(measuring.items())), device)
    with _one_at_a_time:
        line = _line.pop() if _line else None
        if line is None or line.key != (*common, *before[: len(line.key) - len(common)]):
            line = start(store, backbone, tokens, measuring, device, common)
        for block in range(len(line.key) - len(common), len(before)):
            restore_(line.model, block, store.folder(before[block]) / block_file(block))
            line.calibration.advance(block)
            line.key = (*line.key, before[block])
        yield line
        if len(before) + 1 < len(line.calibration):
            _line.append(line)


def start(
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    measuring: Mapping[str, Any],
    device: str,
    key: tuple[Any, ...],
) -> Line:
    """Before the first block; the model shares its tensors with the backbone of this process, which stays as it is."""
    from mgaa.checkpoint import twin_of
    from mgaa.streaming import Calibration, Measuring

    model = twin_of(backbone_model(store, backbone, device)[0])
    return Line(key, model, Calibration(model, token_windows(store, tokens), Measuring(**measuring)))
