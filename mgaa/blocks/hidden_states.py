"""Hidden states of all tokens at the input of a block: on the device, on the host, or in files.

Only they grow with the number of tokens, so they may be held where there is space: 256 x 2048 tokens of a model of width 8192 are 8.6 GB in
bfloat16. With a folder they are also written there in the background, while the next micro-batch is computed: a run that was killed resumes
at the block where it stopped. A *generation* is the number of blocks that the tokens have passed; its files are complete once its mark
exists, and only then are those of the previous generation deleted. A backward pass through the blocks needs them all
(`mgaa.statistics.gradients`): then every generation is kept.

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
from mgaa.blocks.resume import resume_folder

Place = Literal["device", "host", "disk"]
_MARK = re.compile(r"passed-(\d{4})")
_PENDING = 2
"""Micro-batches that may wait to be written; beyond them the computation waits for the disk."""


class HiddenStates:
    """Hidden states of some micro-batches.

    Args:
        batches: number of micro-batches.
        device: where the blocks compute.
        place: where the states are held; `disk` needs a folder.
        folder: where they are written, so that an interrupted run can resume.
        every: whether all generations are kept, or only the last.
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
        self._states = dict[tuple[int, int], Tensor]()  # without those that are only in files
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="hidden-states")
        self._writing: deque[Future[None]] = deque()
        self.passed = 0
        if folder is not None:
            resume_folder(folder)
            marks = (_MARK.fullmatch(path.name) for path in folder.iterdir())
            self.passed = max((int(mark[1]) for mark in marks if mark), default=0)

    @property
    def resumed(self) -> bool:
        """True if the folder holds the states of a generation."""
        return self.passed > 0

    def resume(self) -> None:
        """Load the generation that the folder holds."""
        if self._place != "disk":
            for batch in range(self._batches):
                self._states[self._key(self.passed, batch)] = self._kept(self._read(self.passed, batch))

    def get(self, batch: int, passed: int | None = None) -> Float[Tensor, "*rows h"]:
        """Return the states of a micro-batch, on the device: of the last generation, or of generation `passed` where all are kept."""
        passed = self.passed if passed is None else passed
        state = self._states.get(self._key(passed, batch))
        return self._read(passed, batch) if state is None else state.to(self._device)

    def put(self, batch: int, hidden: Float[Tensor, "*rows h"]) -> None:
        """Set the states of a micro-batch after the current block."""
        if self._place != "disk":
            self._states[self._key(self.passed + 1, batch)] = self._kept(hidden)
        if self._folder is not None:
            if len(self._writing) >= _PENDING:
                self._writing.popleft().result()
            self._writing.append(self._writer.submit(self._write, hidden, self._file(self.passed + 1, batch)))

    def commit(self) -> None:
        """Complete the generation: all micro-batches have passed the current block."""
        self._flush()
        self.passed += 1
        if self._folder is not None:
            (self._folder / f"passed-{self.passed:04d}").touch()
            if not self._every:
                self._drop(self.passed - 1)

    def forget(self, passed: int) -> None:
        """Free the states of a generation in this process; those in files stay, for an interrupted run."""
        for batch in range(self._batches):
            self._states.pop((passed, batch), None)

    def close(self) -> None:
        """Discard everything, including what a run could resume from."""
        self._flush()
        self._writer.shutdown()
        if self._folder is not None:
            for generation in range(1, self.passed + 2):
                self._drop(generation)

    def _key(self, passed: int, batch: int) -> tuple[int, int]:
        """Return the key of states in memory: a generation replaces the one before it, unless every one is kept."""
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
    """Return the bytes of the hidden states of all tokens."""
    return sum(len(batch) for batch in batches) * length * width * dtype.itemsize
