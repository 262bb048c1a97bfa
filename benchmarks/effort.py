"""Cost of a piece of work in a process of its own: wall seconds, CPU seconds, and memory above that of the process before.

Memory is anonymous and shared resident memory (`RssAnon` and `RssShmem`), sampled every 2 ms: everything that a process allocates, without
the pages of libraries, which it maps as it first runs them. It counts the holes that the C library keeps in its heap; with
`MALLOC_MMAP_THRESHOLD_=1000000` in the environment there are none, but it takes longer (fresh pages for every large tensor).
"""

import ctypes
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

INTERVAL = 0.002
T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """Wall seconds, CPU seconds (user and system, of all threads), and bytes above the start at the peak."""

    wall: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Shape:
    """Shape of a random Llama in float32 and of its calibration tokens; the defaults are those of `benchmarks/recipe.py`."""

    hidden: int = 1024
    ffn: int = 2816
    heads: int = 16
    blocks: int = 8
    vocabulary: int = 8192
    samples: int = 32
    length: int = 512

    def model(self) -> LlamaForCausalLM:
        """Build the model, the same at every call."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.length,
        )
        return LlamaForCausalLM(config).eval().requires_grad_(False)

    def tokens(self) -> Tensor:
        """Draw the tokens, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, self.vocabulary, (self.samples, self.length), generator=generator)


def fresh(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work(*arguments)` in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def effort(work: Callable[[], Any]) -> Effort:
    """Do the work in this process and measure it."""
    return measured(work)[0]


def measured(work: Callable[[], T]) -> tuple[Effort, T]:
    """Do the work in this process; returns what it took, and its result."""
    ctypes.CDLL(None).malloc_trim(0)  # memory freed before must not hide what is allocated now
    before, peak, done = allocated(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            peak[0] = max(peak[0], allocated())

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        result = work()
    finally:
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        done.set()
        watcher.join()
    return Effort(wall, cpu, peak[0] - before), result


def allocated() -> int:
    """Resident bytes of this process that are not backed by a file."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return sum(int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "RssShmem:"))
