"""Steps 5 to 8 for one block behind the compressed blocks before it (`mgaa.sequential`): statistics to factors in one cached step.

Each block is keyed by the factors before it, so a killed run goes on at the block where it stopped. The calibration tokens wait in front
of the next block in this process, and in a folder of the store, where the next process finds them; without it, it sends them through the
blocks before once more, which gives the same bits.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

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
    write_table,
)
from tasks.sealing import digest
from tasks.sequences import sequences_of
from tasks.stage import named
from tasks.step import step
from tasks.where import place_of_hidden

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
    from mgaa.architectures import decoder_blocks
    from mgaa.channels import save_scores
    from mgaa.factors import save_energies
    from mgaa.levels import Target
    from mgaa.sequential import allowance
    from mgaa.sequential import compress_block as compress
    from mgaa.shelf import resident

    faster = latency_of(store, backbone, latency)
    target = Target(compression, multiple, pruning_of(channels), faster)
    matrices, given = backbone_matrices(store, backbone), table(store, ratios, RATIOS)
    chosen = (method, options), (rank_method, rank_options)
    spent = sum(table(store, each, RANKS)["linear_parameters"] for each in before)
    recipe: dict[str, Any] = {
        "ratios": ratios.digest,
        "factors": (method, options),
        "ranks": (rank_method, rank_options),
        "target": (compression, multiple, channels, latency),
        "measuring": measuring,
    }
    with (
        in_front_of(store, backbone, tokens, before, recipe, device) as line,
        resident(decoder_blocks(line.model)[block]),
    ):
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
    """A model whose first blocks are compressed, with the calibration tokens in front of the next one.

    Attributes:
        key: what all of it depends on, but the factors.
        before: those of the blocks that the tokens have passed.
        folder: where the tokens wait for another process.
        lock: on the folder.
    """

    key: tuple[Any, ...]
    before: tuple[Artifact, ...]
    model: Any
    calibration: "Calibration"
    folder: Path
    lock: FileLock


_one_at_a_time = Lock()
_line: list[Line] = []
"""The line that this process has, if any."""
_BEFORE = "before.json"


@contextmanager
def in_front_of(
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    before: Sequence[Artifact],
    recipe: Mapping[str, Any],
    device: str,
) -> Iterator[Line]:
    """The line behind these compressed blocks: the one of this process as far as it goes, else that of a killed process, else one from
    the start.

    It is dropped where something fails in this block, and behind the last block of the model.

    Args:
        recipe: how the blocks are measured and compressed.
    """
    from mgaa.architectures import decoder_blocks
    from mgaa.shelf import resident

    key = (store, backbone, tokens, digest(recipe), device)
    with _one_at_a_time:
        line = _line.pop() if _line else None
        if line is not None and (line.key != key or line.before != tuple(before[: len(line.before)])):
            line = None  # before another one starts, for its folder may be the same
        if line is None:
            line = start(key, before, recipe["measuring"])
        for block in range(len(line.before), len(before)):
            line.before = tuple(before[: block + 1])
            write_table(line.folder / _BEFORE, [each.digest for each in line.before])
            with resident(decoder_blocks(line.model)[block]):
                restore_(line.model, block, store.folder(before[block]) / block_file(block))
                line.calibration.advance(block)
        yield line
        if len(before) + 1 < len(line.calibration):
            _line.append(line)
        else:
            line.calibration.close()
            shutil.rmtree(line.folder, ignore_errors=True)
            line.lock.release()


def start(key: tuple[Any, ...], before: Sequence[Artifact], measuring: Mapping[str, Any]) -> Line:
    """Before the first block, or behind those that a killed process has passed with the same factors.

    The model shares its tensors with the backbone of this process, which stays as it is.
    """
    from mgaa.checkpoint import twin_of
    from mgaa.prompts import Prompts
    from mgaa.streaming import Calibration, Measuring
    from mgaa.unfinished import taken_up

    store, backbone, tokens, recipe, device = key
    model, prompts = twin_of(backbone_model(store, backbone, device)[0]), Prompts.of(sequences_of(store, tokens))
    place = place_of_hidden(device, prompts.tokens * model.config.get_text_config().hidden_size * model.dtype.itemsize)
    name = f"line-{digest([named(backbone), named(tokens), recipe, str(device)])}"
    folder, lock = own_folder(store, name)
    taken_up(folder)

    def calibration() -> "Calibration":
        return Calibration(model, prompts, Measuring(**measuring), place=place, folder=folder / "hidden")

    found = calibration()
    passed = json.loads((folder / _BEFORE).read_text()) if (folder / _BEFORE).exists() else []
    if found.passed and passed[: found.passed] != [each.digest for each in before[: found.passed]]:
        found.close()  # behind blocks that were compressed otherwise
        found = calibration()
    return Line(key, tuple(before[: found.passed]), model, found, folder, lock)


def own_folder(store: Store, name: str) -> tuple[Path, FileLock]:
    """The folder of that name, or, while another process has a line there, one that nobody else has."""
    locks = store.path / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    places = (name, f"{name}-{os.getpid()}-{secrets.token_hex(4)}")
    for place in places:
        lock = FileLock(locks / f"{place}.lock", timeout=0, thread_local=False)
        with suppress(Timeout):
            lock.acquire()
            return store.path / "unfinished" / place, lock
    raise AssertionError("a name that was drawn just now is taken")
