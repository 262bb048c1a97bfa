"""Measurement of a device profile (`mgaa.allocation.latency`): the time of a model's linears, dense and at a grid of ranks.

What makes the numbers fair:

- A shape is timed as it occurs in a model: in a chain of layers with separate weights, together as large as the linears of the model (at
  most `BYTES`, at most `LAYERS`), so that weights come from memory where those of the model do, and from a cache where those of the model
  fit. On a GPU the calls of a chain follow each other without synchronisation, as in the forward of a model: the result is the larger of
  the time to compute and the time to launch.
- Dense and low rank alternate: every repetition times all of them, each time starting with another one, so that a device that slows down
  slows all of them. Reported are medians of repetitions and interquartile ranges.
- The layers are those of the checkpoint (`nn.Linear`, `LowRankLinear`), in inference mode, on one random input.

Legend: m outputs, n inputs, r rank, t tokens.
"""

import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import nn
from tqdm.auto import tqdm

from mgaa.allocation.latency import Curve, Profile, Shape, Timing, shape_of
from mgaa.budget import Matrix, rank_multiple
from mgaa.errors import UsageError
from mgaa.models.lowrank import LowRankLinear

BYTES = 96 * 2**20
"""Bytes of the weights in a chain: more than the last-level cache of most devices."""

LAYERS = 64
"""Maximum number of layers in a chain."""

WARM_UP = 2
"""Repetitions that are discarded."""

Candidate = int | None
"""A rank; `None` is dense."""


def measure(
    matrices: Sequence[Matrix],
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    tokens: Sequence[int] = (1, 256),
    repetitions: int = 20,
    ranks: int = 8,
    multiple: int | str = "auto",
    centred: bool = True,
    threads: int | None = None,
) -> Profile:
    """Time every distinct shape of a model on a device.

    Args:
        matrices: of the model; their weights are not needed.
        dtype: of weights and input.
        device: `cpu`, `cuda` or `cuda:<number>`.
        tokens: per call; 1 is decoding, hundreds are a prompt.
        repetitions: per median.
        ranks: number of ranks to time per shape, from the lowest to the one at which low rank has as many parameters as dense.
        multiple: the step between ranks.
        centred: whether low rank has the bias that centring adds.
        threads: of the CPU; `None` for torch's default.

    Raises:
        UsageError: a number is out of range, or the device does not exist.
    """
    place = torch.device(device)
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"backbone.device is {device!r}, but torch sees {torch.cuda.device_count()} CUDA devices: use auto or cpu"
        )
    for name, value, least in (
        ("profile.repetitions", repetitions, 2),
        ("profile.ranks", ranks, 2),
        ("profile.tokens", min(tokens, default=0), 1),
    ):
        if value < least:
            raise UsageError(f"{name} is {value}, expected a whole number from {least}")
    step = rank_multiple(matrices, multiple)
    weights = sum(matrix.parameters for matrix in matrices) * dtype.itemsize
    shapes = list(dict.fromkeys(map(shape_of, matrices)))
    curves: dict[Shape, dict[int, Curve]] = {shape: {} for shape in shapes}
    with _threads(threads), torch.inference_mode():
        progress = tqdm(shapes, desc="timing linears", disable=None)
        for m, n, bias in progress:
            chains = _chains((m, n, bias), rank_grid(m, n, step, ranks), weights, centred, dtype, device)
            for count in tokens:
                x = torch.randn(1, count, n, device=device).to(dtype)
                timings = _time_candidates({rank: (chain, x) for rank, chain in chains.items()}, repetitions)
                dense = timings.pop(None)
                curves[m, n, bias][count] = Curve(dense, {r: t for r, t in timings.items() if r is not None})
        return Profile(
            device=place.type,
            name=device_name(device),
            dtype=str(dtype).removeprefix("torch."),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            tokens=tuple(tokens),
            repetitions=repetitions,
            multiple=step,
            centred=centred,
            curves=curves,
        )


def rank_grid(m: int, n: int, step: int, count: int) -> list[int]:
    """Return at most `count` multiples of `step`, evenly spaced up to the one that reaches break-even, none above `min(m, n)`."""
    last = max(1, -(-m * n // ((m + n) * step)))
    steps = sorted({1 + round(index * (last - 1) / (count - 1)) for index in range(count)})
    return sorted({min(each * step, m, n) for each in steps})


def device_name(device: str) -> str:
    """Return the name that the device reports."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _chains(
    shape: Shape, ranks: Iterable[int], weights: int, centred: bool, dtype: torch.dtype, device: str
) -> dict[Candidate, list[nn.Module]]:
    """Build the layers of every candidate, with random weights."""
    m, n, bias = shape

    def length(parameters: int) -> int:
        return min(LAYERS, max(1, min(weights, BYTES) // (parameters * dtype.itemsize)))

    chains: dict[Candidate, list[nn.Module]] = {
        None: [nn.Linear(n, m, bias, device, dtype) for _ in range(length(m * n))]
    }
    for rank in ranks:
        count = length(rank * (m + n))
        chains[rank] = [LowRankLinear(n, m, rank, bias or centred, device, dtype) for _ in range(count)]
    return chains


def _time_candidates(
    candidates: dict[Candidate, tuple[list[nn.Module], torch.Tensor]], repetitions: int
) -> dict[Candidate, Timing]:
    """Time one call of each candidate, in seconds."""
    measured: dict[Candidate, list[float]] = {rank: [] for rank in candidates}
    order = list(candidates)
    for repetition in range(WARM_UP + repetitions):
        first = repetition % len(order)
        for rank in (*order[first:], *order[:first]):
            layers, x = candidates[rank]
            seconds = _seconds(layers, x) / len(layers)
            if repetition >= WARM_UP:
                measured[rank].append(seconds)
    return {rank: _timing(values) for rank, values in measured.items()}


def _timing(values: Sequence[float]) -> Timing:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Timing(median(values), high - low)


def _seconds(layers: Sequence[nn.Module], x: torch.Tensor) -> float:
    """Time a chain in seconds, by the clock of the device."""
    if x.is_cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(x.device)
        start.record()
        for layer in layers:
            layer(x)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    began = time.perf_counter()
    for layer in layers:
        layer(x)
    return time.perf_counter() - began


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set the number of torch threads within this context."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
