"""The hidden states of all tokens while they wait in front of a block: on the device, on the host, or in files.

They are the one thing that grows with the number of tokens, so they may lie where there is room: 256 x 2048 tokens of a model of width
8192 are 8.6 GB in bfloat16. Where there is a folder they are also written there in the background, while the next micro-batch is computed:
a run that was killed goes on at the block where it stopped. A *generation* is the number of blocks that the tokens have passed; its
files are complete once its mark is there, and only then are those of the generation before it deleted. A pass that goes back through the
blocks needs them all (`mgaa.statistics.gradients`): then every generation is kept.

Legend: rows are the sequences of a micro-batch and their tokens, or patches of images; h hidden size.
"""

import re
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgaa.blocks.offload import aligned
from mgaa.blocks.resume import taken_up

Place = Literal["device", "host", "disk"]
_MARK = re.compile(r"passed-(\d{4})")
_PENDING = 2
"""Micro-batches that may wait to be written; the computation waits for the disk beyond them."""


class HiddenStates:
    """The hidden states of some micro-batches.

    Args:
        batches: how many micro-batches there are.
        device: where the blocks compute.
        place: where the states wait; `disk` needs a folder.
        folder: where they are written, so that an interrupted run can go on.
        every: whether all generations are kept, or the last one alone.
    """

    def __init__(
        self,
        batches: int,
        device: torch.device,
        *,
        place: Place = "device",
        folder: Path | None = None,
        every: bool = False,
    ) -> None:
        assert folder is not None or place != "disk", "hidden states on the disk need a folder"
        self._device, self._place, self._folder = device, place, folder
        self._batches, self._every = batches, every
        self._states = dict[tuple[int, int], Tensor]()  # those in files alone are not here
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="hidden-states")
        self._writing: deque[Future[None]] = deque()
        self.passed = 0
        if folder is not None:
            taken_up(folder)
            marks = (_MARK.fullmatch(path.name) for path in folder.iterdir())
            self.passed = max((int(mark[1]) for mark in marks if mark), default=0)

    @property
    def resumed(self) -> bool:
        """Whether the states of some generation were found in the folder."""
        return self.passed > 0

    def resume(self) -> None:
        """Take up the states that were found."""
        if self._place != "disk":
            for batch in range(self._batches):
                self._states[self._key(self.passed, batch)] = self._kept(self._read(self.passed, batch))

    def get(self, batch: int, passed: int | None = None) -> Float[Tensor, "*rows h"]:
        """The states of a micro-batch, on the device; of the last generation, or where every one is kept, of that one."""
        passed = self.passed if passed is None else passed
        state = self._states.get(self._key(passed, batch))
        return self._read(passed, batch) if state is None else state.to(self._device)

    def put(self, batch: int, hidden: Float[Tensor, "*rows h"]) -> None:
        """What they are behind the block at hand."""
        if self._place != "disk":
            self._states[self._key(self.passed + 1, batch)] = self._kept(hidden)
        if self._folder is not None:
            if len(self._writing) >= _PENDING:
                self._writing.popleft().result()
            self._writing.append(self._writer.submit(self._write, hidden, self._file(self.passed + 1, batch)))

    def settle(self) -> None:
        """All micro-batches have passed the block at hand."""
        self._flush()
        self.passed += 1
        if self._folder is not None:
            (self._folder / f"passed-{self.passed:04d}").touch()
            if not self._every:
                self._drop(self.passed - 1)

    def forget(self, passed: int) -> None:
        """The states of a generation are not asked for again in this process; those in files stay, for an interrupted run."""
        for batch in range(self._batches):
            self._states.pop((passed, batch), None)

    def close(self) -> None:
        """Nothing is to be resumed any more."""
        self._flush()
        self._writer.shutdown()
        if self._folder is not None:
            for generation in range(1, self.passed + 2):
                self._drop(generation)

    def _key(self, passed: int, batch: int) -> tuple[int, int]:
        """Where states are in memory: a generation takes the place of the one before it, unless every one is kept."""
        return (passed if self._every else 0), batch

    def _kept(self, hidden: Tensor) -> Tensor:
        return hidden.to(self._device if self._place == "device" else "cpu")

    def _file(self, generation: int, batch: int) -> Path:
        assert self._folder is not None
        return self._folder / f"hidden-{generation:04d}-{batch:05d}.safetensors"

    def _read(self, passed: int, batch: int) -> Tensor:
        return aligned(load_file(self._file(passed, batch), str(self._device))["hidden"])

    @staticmethod
    def _write(hidden: Tensor, path: Path) -> None:
        save_file({"hidden": hidden.detach().cpu().contiguous()}, path)

    def _flush(self) -> None:
        while self._writing:
            self._writing.popleft().result()

    def _drop(self, generation: int) -> None:
        assert self._folder is not None
        (self._folder / f"passed-{generation:04d}").unlink(missing_ok=True)
        for path in self._folder.glob(f"hidden-{generation:04d}-*.safetensors"):
            path.unlink()


def bytes_of(batches: Sequence[range], length: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of the hidden states of all tokens."""
    return sum(len(batch) for batch in batches) * length * width * dtype.itemsize
