"""Ranks that are faster than dense on a device: a measured profile of its linears, and ladders without the slower rungs.

Fewer multiplications do not always take less time: two thin products cost two calls, and a kernel may use a device better on one large
matrix. So a *profile* holds, for every shape of a model, the median seconds of the dense layer and of the low-rank one at a grid of ranks
(measured by `mgaa.allocation.device_profile`); between those ranks time is interpolated linearly. Under the objective `latency` a matrix
keeps only the ranks that take less time than its dense form, at the requested number of tokens per call, or at every number in the profile:
decoding reads one token per call and is bound by memory, a prompt of hundreds is bound by arithmetic, and the results differ. A matrix that
no rank makes faster stays dense. The parameter budget is the same as ever.

Every time derived from a profile is a prediction: for the linears alone, each measured by itself.

As JSON, times in seconds; `spread` is the interquartile range:

    {"device": "cpu", "name": "...", "dtype": "float32", "torch": "2.13.0", "threads": 2, "tokens": [1, 256], "repetitions": 20,
     "multiple": 8, "centred": true,
     "shapes": [{"m": 64, "n": 64, "bias": false,
                 "times": {"1": {"dense": {"seconds": 1e-5, "spread": 1e-7},
                                 "low_rank": [{"rank": 8, "seconds": 8e-6, "spread": 1e-7}, ...]}, "256": {...}}}, ...]}
"""

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mgaa.budget import Ladder, Matrix
from mgaa.checkpoints.output_folder import write_output
from mgaa.errors import InputError, ResourceError, UsageError

COMMAND = "python -m flows.profile_device"
"""Command that measures a profile."""

Shape = tuple[int, int, bool]
"""Outputs, inputs, and whether the dense layer has a bias."""

Seconds = dict[str, dict[str, float]]
"""By number of tokens: `dense` and `compressed`."""


def shape_of(matrix: Matrix) -> Shape:
    """Return the shape that determines the time of a matrix."""
    return matrix.m, matrix.n, matrix.bias


@dataclass(frozen=True)
class Timing:
    """Median seconds of a call, and the interquartile range."""

    seconds: float
    spread: float


@dataclass(frozen=True)
class Curve:
    """The times of one shape at one number of tokens.

    Attributes:
        dense: time of the dense layer.
        low_rank: times by rank, ascending.
    """

    dense: Timing
    low_rank: Mapping[int, Timing]

    def at(self, rank: int | None) -> float:
        """Return the seconds at a rank, interpolated linearly between measured ones, clamped outside them; `None` is dense."""
        if rank is None:
            return self.dense.seconds
        ranks = [*self.low_rank]
        above = bisect_left(ranks, rank)
        if above == len(ranks) or rank == ranks[above] or above == 0:
            return self.low_rank[ranks[min(above, len(ranks) - 1)]].seconds
        low, high = ranks[above - 1], ranks[above]
        part = (rank - low) / (high - low)
        return (1 - part) * self.low_rank[low].seconds + part * self.low_rank[high].seconds


@dataclass(frozen=True)
class Profile:
    """Measured times of a device, and the conditions of the measurement.

    Attributes:
        device, name: `cpu` or `cuda`, and the name that the device reports.
        dtype, torch, threads: dtype of the weights, version of torch, threads of the CPU.
        tokens: measured numbers of tokens per call.
        repetitions: per median.
        multiple: the step of the measured ranks.
        centred: whether low rank was measured with the biases that centring adds.
        curves: by shape and number of tokens.
    """

    device: str
    name: str
    dtype: str
    torch: str
    threads: int
    tokens: tuple[int, ...]
    repetitions: int
    multiple: int
    centred: bool
    curves: Mapping[Shape, Mapping[int, Curve]]

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON.

        Raises:
            UsageError: the path holds a file that this package did not write, or that has changed since.
            ResourceError: the file cannot be written.
        """
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_output(path, (json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise ResourceError(
                f"the profile cannot be written to {path} ({error.strerror}): make room or give a path that can be written"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dictionaries, in the layout of the file."""
        shapes = [
            {
                **dict(zip(("m", "n", "bias"), shape, strict=True)),
                "times": {
                    str(tokens): {
                        "dense": asdict(curve.dense),
                        "low_rank": [{"rank": rank, **asdict(timing)} for rank, timing in curve.low_rank.items()],
                    }
                    for tokens, curve in curves.items()
                },
            }
            for shape, curves in self.curves.items()
        ]
        facts = {name: getattr(self, name) for name in _FACTS}
        return {**facts, "tokens": [*self.tokens], "shapes": shapes}


@dataclass(frozen=True)
class Latency:
    """Latency objective: ranks that are faster than dense, according to a profile.

    Attributes:
        profile: of the target device.
        tokens: per call; a rank has to be faster at each of them.
        path: of the profile, for messages.
    """

    profile: Profile
    tokens: tuple[int, ...]
    path: str

    def drop_slow_ranks(self, ladders: Sequence[Ladder], *, step: int, centred: bool) -> list[Ladder]:
        """Return the ladders without the ranks that are not faster than dense.

        Args:
            step: between the ranks of the ladders.
            centred: whether the factorizer adds biases.

        Raises:
            InputError: the profile lacks a shape.
            UsageError: the profile was measured at other rank steps, or without the biases that the factorizer adds.
        """
        if step % self.profile.multiple:
            raise UsageError(
                f"ranks are multiples of {step}, but {self.path} was measured at multiples of {self.profile.multiple}, which has no times "
                f"for those between: set ranks.multiple to a multiple of {self.profile.multiple}, or measure again by `{COMMAND} "
                f"ranks.multiple={step}`"
            )
        if centred and not self.profile.centred:
            raise UsageError(
                f"the factorizer adds biases, but {self.path} was measured without them: measure again by `{COMMAND}` with the same "
                "factors.method"
            )
        return [ladder.restricted(self._faster(ladder.matrix)) for ladder in ladders]

    def seconds(self, matrix: Matrix, rank: int | None) -> Seconds:
        """Predict the seconds of a call at each number of tokens of the profile, dense and at a rank."""
        curves = self._curves(matrix)
        return {
            str(tokens): {"dense": curve.at(None), "compressed": curve.at(rank)} for tokens, curve in curves.items()
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Facts behind a prediction, for a report."""
        profile = self.profile
        names = ("device", "name", "dtype", "threads")
        return {**{name: getattr(profile, name) for name in names}, "faster_at_tokens": [*self.tokens]}

    def _faster(self, matrix: Matrix) -> Callable[[int], bool]:
        curves = [self._curves(matrix)[tokens] for tokens in self.tokens]
        return lambda rank: all(curve.at(rank) < curve.at(None) for curve in curves)

    def _curves(self, matrix: Matrix) -> Mapping[int, Curve]:
        curves = self.profile.curves.get(shape_of(matrix))
        if curves is None:
            bias = "with" if matrix.bias else "without"
            raise InputError(
                f"{self.path} has no times of {matrix.m} x {matrix.n} {bias} a bias, the shape of {matrix.name}: measure this model by "
                f"`{COMMAND} backbone.source=<its folder>`"
            )
        return curves


def total_seconds(predictions: Sequence[Seconds]) -> Seconds:
    """Sum predictions over matrices."""
    totals: Seconds = {}
    for prediction in predictions:
        for tokens, seconds in prediction.items():
            sums = totals.setdefault(tokens, dict.fromkeys(seconds, 0.0))
            for form, value in seconds.items():
                sums[form] += value
    return totals


def load_latency(profile: str | Path, *, dtype: str, tokens: int | None = None, device: str | None = None) -> Latency:
    """Load the latency objective from a profile.

    Args:
        profile: path of the file.
        dtype: of the model, such as `bfloat16`.
        tokens: per call, at which ranks have to be faster; `None` for each number in the profile.
        device: kind or name required of the profile's device; `None` for any.

    Raises:
        InputError: the file is missing, damaged or not a profile.
        UsageError: it has another dtype or device, or was not measured at this number of tokens.
    """
    loaded = load_profile(profile)
    if loaded.dtype != dtype:
        raise UsageError(
            f"{profile} was measured in {loaded.dtype}, but the weights are {dtype}: measure again by `{COMMAND} backbone.dtype={dtype}`"
        )
    if device is not None and device not in (loaded.device, loaded.name):
        raise UsageError(
            f"ranks.device is {device!r}, but {profile} was measured on {loaded.device} ({loaded.name}): measure again on the intended "
            f"device by `{COMMAND}`, or set ranks.device to one of these two"
        )
    if tokens is not None and tokens not in loaded.tokens:
        raise UsageError(
            f"ranks.tokens is {tokens}, but {profile} was measured at {', '.join(map(str, loaded.tokens))} tokens per call: take one of "
            f"these, null for all of them, or measure again by `{COMMAND} 'profile.tokens=[{tokens}]'`"
        )
    return Latency(loaded, loaded.tokens if tokens is None else (tokens,), str(profile))


def load_profile(path: str | Path) -> Profile:
    """Read a profile.

    Raises:
        InputError: the file is missing or damaged, holds something else, or has a time that is not a positive number.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the profile {path} cannot be read ({error.strerror}): make it by `{COMMAND}`") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the profile {path} is not JSON ({error}): make it again by `{COMMAND}`") from error
    facts = {name: _get(content, name, kind, str(path)) for name, kind in _FACTS.items()}
    tokens = tuple(
        _get({"tokens": each}, "tokens", int, str(path)) for each in _get(content, "tokens", list, str(path))
    )
    curves: dict[Shape, dict[int, Curve]] = {}
    for number, entry in enumerate(_get(content, "shapes", list, str(path))):
        where = f"shape {number} of {path}"
        shape = (_get(entry, "m", int, where), _get(entry, "n", int, where), _get(entry, "bias", bool, where))
        times = _get(entry, "times", dict, where)
        curves[shape] = {each: _curve(times, each, where) for each in tokens}
    if not tokens or not curves:
        raise InputError(f"the profile {path} has no {'shapes' if tokens else 'tokens'}: make it again by `{COMMAND}`")
    return Profile(**facts, tokens=tokens, curves=curves)


def _curve(times: Mapping[str, Any], tokens: int, where: str) -> Curve:
    where = f"{tokens} tokens of {where}"
    entry = _get(times, str(tokens), dict, where)
    low_rank = {}
    for point in _get(entry, "low_rank", list, where):
        rank = _get(point, "rank", int, where)
        low_rank[rank] = _timing(point, f"rank {rank} at {where}")
    if not low_rank or any(above <= below for below, above in pairwise(low_rank)):
        raise InputError(
            f"low_rank at {where} is not in ascending order of rank, or empty: make it again by `{COMMAND}`"
        )
    return Curve(_timing(_get(entry, "dense", dict, where), f"dense at {where}"), low_rank)


def _timing(entry: Any, where: str) -> Timing:
    return Timing(_get(entry, "seconds", float, where), _get(entry, "spread", float, where))


_FACTS: dict[str, type] = {
    **dict.fromkeys(("device", "name", "dtype", "torch"), str),
    **dict.fromkeys(("threads", "repetitions", "multiple"), int),
    "centred": bool,
}
"""Keys of the file that hold plain values."""

_KINDS: dict[type, str] = {
    str: "a string",
    int: "a positive whole number",
    float: "a finite number, seconds a positive one",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _get(entry: Any, key: str, kind: type, where: str) -> Any:
    """Return the value of a key, if it exists and has the right kind."""
    value: Any = entry.get(key) if isinstance(entry, dict) else None
    sound = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if sound and kind in (int, float):
        sound = math.isfinite(value) and (value > 0 or (key == "spread" and value == 0))
    if not sound:
        raise InputError(
            f"{key} of {where} is {json.dumps(value)[:40]}, expected {_KINDS[kind]}: give a profile that `{COMMAND}` has made"
        )
    return value
