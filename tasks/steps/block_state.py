"""State of a sequential compression: a model whose first k blocks are compressed, and the calibration hidden states at the input of block
k.

The hidden states wait in this process, and in a folder of the store, where the next process finds them; without that folder it sends the
tokens through the blocks before once more, which gives the same bits.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from tasks.artifacts.backbone import backbone_model
from tasks.artifacts.calibration_input import sequences_of
from tasks.artifacts.factors import restore_
from tasks.artifacts.files import block_file, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import digest
from tasks.cache.placement import place_of_hidden
from tasks.cache.stage import manifest_input

if TYPE_CHECKING:
    from mgaa.statistics.calibration import Calibration, CalibrationSettings


@dataclass
class SequentialState:
    """A model whose first blocks are compressed, with the calibration hidden states at the input of the next one.

    Attributes:
        key: everything that the state depends on, but the factors.
        before: the factors of the blocks that the tokens have passed.
        model: the twin of the backbone that is compressed.
        calibration: the hidden states at the input of its next block.
        anchor: the calibration of both models (`mgaa.anchoring.anchoring.Anchor`) where factors are fitted to the backbone; else null.
        folder: where the hidden states wait for another process.
        lock: on the folder.
    """

    key: tuple[Any, ...]
    before: tuple[Artifact, ...]
    model: Any
    calibration: "Calibration"
    anchor: Any
    folder: Path
    lock: FileLock

    def leads_to(self, key: tuple[Any, ...], before: Sequence[Artifact]) -> bool:
        """Whether the blocks `before` begin with those that the tokens have passed."""
        return self.key == key and self.before == tuple(before[: len(self.before)])

    def advance(self, block: int) -> None:
        """Pass the tokens through this block."""
        (self.calibration if self.anchor is None else self.anchor).advance(block)

    def close(self) -> None:
        """Drop the hidden states, in files as well."""
        for each in (self.calibration, *(() if self.anchor is None else (self.anchor.dense,))):
            each.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()


class AnchorFactory(Protocol):
    """Fit of a model to the backbone (tasks/steps/anchor_block.py), apart so that steps without it do not reach its code."""

    def waiting(self, model: Any, tokens: int) -> int:
        """Bytes of hidden states that are held meanwhile."""

    def anchor(
        self, backbone: Any, model: Any, dense: "Calibration", compressed: "Calibration", *, remember: bool
    ) -> Any:
        """The `mgaa.anchoring.anchoring.Anchor` of two models and their calibrations."""


class StateSlot:
    """The state that a process keeps from one block to the next; whoever takes it holds the `lock`."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._state: SequentialState | None = None

    def take(self, key: tuple[Any, ...], before: Sequence[Artifact]) -> SequentialState | None:
        """The state, if the blocks `before` continue it. Any other is dropped, because a new one may need its folder."""
        state, self._state = self._state, None
        return state if state is not None and state.leads_to(key, before) else None

    def keep(self, state: SequentialState) -> None:
        """Keep the state for the next block."""
        self._state = state


_slot = StateSlot()
_BEFORE = "before.json"


@contextmanager
def state_before(
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    before: Sequence[Artifact],
    recipe: Mapping[str, Any],
    calibration: "CalibrationSettings",
    device: str,
    anchors: AnchorFactory | None = None,
) -> Iterator[SequentialState]:
    """The state behind these compressed blocks: that of this process as far as it goes, else that of a killed process, else one from the
    start.

    It is dropped where something fails in this block, and behind the last block of the model.

    Args:
        recipe: how the blocks are compressed.
        calibration: how they are measured.
        anchors: fit of the model to the backbone, which the tokens then pass as well.
    """
    from mgaa.blocks.offload import load_block
    from mgaa.blocks.resume import atomic_file
    from mgaa.models.architectures import decoder_blocks

    key = (store, backbone, tokens, digest({**recipe, "measuring": asdict(calibration)}), device)
    with _slot.lock:
        state = _slot.take(key, before) or start_state(key, before, calibration, anchors)
        for block in range(len(state.before), len(before)):
            state.before = tuple(before[: block + 1])
            with atomic_file(state.folder / _BEFORE) as draft:
                write_table(draft, [each.digest for each in state.before])
            with load_block(decoder_blocks(state.model)[block]):
                restore_(state.model, block, store.folder(before[block]) / block_file(block))
                state.advance(block)
        yield state
        if len(before) + 1 < len(state.calibration):
            _slot.keep(state)
        else:
            state.close()


def start_state(
    key: tuple[Any, ...],
    before: Sequence[Artifact],
    settings: "CalibrationSettings",
    anchors: AnchorFactory | None = None,
) -> SequentialState:
    """Start before the first block, or behind those that a killed process has passed with the same factors.

    The model shares its tensors with the backbone of this process, which stays as it is.
    """
    from mgaa.blocks.resume import resume_folder
    from mgaa.checkpoints.save import twin_of
    from mgaa.inputs.prompts import Prompts
    from mgaa.statistics.calibration import Calibration

    store, backbone, tokens, recipe, device = key
    whole, prompts = backbone_model(store, backbone, device)[0], Prompts.of(sequences_of(store, tokens))
    model = twin_of(whole)
    size = prompts.tokens * model.config.get_text_config().hidden_size * model.dtype.itemsize
    place = place_of_hidden(device, size if anchors is None else anchors.waiting(model, prompts.tokens))
    name = f"line-{digest([manifest_input(backbone), manifest_input(tokens), recipe, str(device)])}"
    folder, lock = own_folder(store, name)
    resume_folder(folder)

    def calibration(model: Any = model, name: str = "hidden") -> "Calibration":
        return Calibration(model, prompts, settings, place=place, folder=folder / name)

    found = calibration()
    passed = read_passed_factors(folder)
    if found.passed and passed[: found.passed] != [each.digest for each in before[: found.passed]]:
        found.close()  # behind blocks that were compressed otherwise
        found = calibration()
    anchor = None
    if anchors is not None:
        twin = twin_of(whole)  # watched, which other steps must not see
        dense = calibration(twin, "dense")
        for block in range(dense.passed, found.passed):
            dense.advance(block)
        anchor = anchors.anchor(twin, model, dense, found, remember=place == "device")
    return SequentialState(key, tuple(before[: found.passed]), model, found, anchor, folder, lock)


def read_passed_factors(folder: Path) -> list[str]:
    """Digests of the factors of the blocks that the tokens in a folder have passed; none where the list is incomplete."""
    try:
        found: list[str] = json.loads((folder / _BEFORE).read_text())
    except (FileNotFoundError, ValueError):
        return []
    return found


def own_folder(store: Store, name: str) -> tuple[Path, FileLock]:
    """The folder of that name, or, while another process has a state there, one that nobody else has."""
    locks = store.path / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    places = (name, f"{name}-{os.getpid()}-{secrets.token_hex(4)}")
    for place in places:
        lock = FileLock(locks / f"{place}.lock", timeout=0, thread_local=False)
        with suppress(Timeout):
            lock.acquire()
            return store.path / "unfinished" / place, lock
    raise AssertionError("a name that was drawn just now is taken")
