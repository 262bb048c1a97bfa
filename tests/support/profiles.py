"""Device profiles computed by a rule instead of a clock, so that the correct allocation is known."""

from collections.abc import Callable, Iterable

from mgaa.allocation.device_profile import rank_grid
from mgaa.allocation.latency import Curve, Profile, Timing, shape_of
from mgaa.budget import Matrix

Rule = Callable[[Matrix, int | None, int], float]
"""Seconds of a matrix at a rank (`None` is dense) and a number of tokens."""


def made(
    matrices: Iterable[Matrix],
    rule: Rule,
    *,
    tokens: tuple[int, ...] = (1,),
    multiple: int = 1,
    count: int = 8,
    centred: bool = True,
    dtype: str = "float32",
) -> Profile:
    """Profile of a device on which the rule holds, at `count` ranks of every shape."""
    shapes = {shape_of(matrix): matrix for matrix in matrices}
    return Profile(
        device="cpu",
        name="a device",
        dtype=dtype,
        torch="2",
        threads=1,
        tokens=tokens,
        repetitions=2,
        multiple=multiple,
        centred=centred,
        curves={
            shape: {
                t: Curve(
                    Timing(rule(matrix, None, t), 0.0),
                    {r: Timing(rule(matrix, r, t), 0.0) for r in rank_grid(matrix.m, matrix.n, multiple, count)},
                )
                for t in tokens
            }
            for shape, matrix in shapes.items()
        },
    )


def by_parameters(matrix: Matrix, rank: int | None, tokens: int) -> float:
    """Time proportional to the parameters without biases."""
    return tokens * 1e-6 * matrix.cost(rank, centred=False)


def always_slower(matrix: Matrix, rank: int | None, tokens: int) -> float:
    """Time that is longer for low rank than for dense, whatever the rank."""
    return tokens * (1.0 if rank is None else 1.0 + 1e-3 * rank)
