"""Level 2 of MGAA: ranks of the matrices inside a sublayer, under the budget that level 1 gave it (arXiv 2507.03294).

Each file holds one rule `allocate(ladders, budget, *, options)` that puts every matrix of one sublayer on a rung of its ladder. The
parameters that the rules leave over are then spent on the whole model by the same refill for every rule, so that methods are
compared at equal parameters: what is left is smaller than the cheapest next step of any matrix. Rules whose roundings are those of a
published method (`Traits.verbatim`) are not refilled. A rule for all matrices of the model at once (`Traits.whole_model`) is given all
ladders and their whole budget, whatever the ratios; nothing is refilled after it, and it is refused where blocks are allocated one after
the other. A rule that has to check the model and the compression first has a second function, `check(ladders, compression, *, options)`.

Whose "energy distribution" the paper means is open too: rules and refill compare the energies in the metric of the factorizer, or those of
the plain weight (`ladders_of`). Factors are made in the metric either way, and so the outcome states the energy that is kept there.

FFNs that are pruned (`mgaa.allocation.channels`) have a width instead of ranks. The published rounding may keep a fraction of a channel
more than the ratio allows; where that exceeds the budget of everything together, they give channels back one step at a time, the last block
first.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from mgaa.allocation.channels import Channels, ChannelScores
from mgaa.allocation.latency import Latency
from mgaa.budget import Ladder, Matrix, check_reachable, explain_unmeasured, parameter_budget, rank_multiple, refill
from mgaa.errors import UsageError
from mgaa.methods import check_method, load_method, method_traits

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """The outcome for one matrix.

    Attributes:
        rank: `None` is dense.
        energy: the share of its energy that it keeps.
        width: channels that remain of it where its FFN is pruned.
        unreached: whether it is dense because no calibration token has reached it.
    """

    matrix: Matrix
    rank: int | None
    parameters: int
    energy: float
    width: int | None = None
    unreached: bool = False

    @staticmethod
    def at(ladder: Ladder, rung: int) -> "Rank":
        """The outcome for the matrix of a ladder that stands on a rung."""
        energy = ladder.energies[rung]
        return Rank(ladder.matrix, ladder.ranks[rung], ladder.costs[rung], energy, unreached=not ladder.is_measured)


def ladders_of(
    matrices: Sequence[Matrix],
    energies: Mapping[str, Float[Tensor, " p"]],
    *,
    centred: bool,
    multiple: int | str = "auto",
    latency: Latency | None = None,
    plain: Mapping[str, Float[Tensor, " p"]] | None = None,
) -> list[Ladder]:
    """The ladder of every matrix.

    Args:
        energies: by matrix name, in the metric of the factorizer; a matrix without any stays dense.
        centred: whether the factors add biases.
        multiple: the step between ranks.
        latency: leaves out what is not faster than dense; `None`: whatever has fewer parameters is a rung.
        plain: energies of the plain weights by name, which rules then compare instead.

    Raises:
        UsageError: the step between ranks leaves a matrix without any low rank, or the profile is of other steps or without biases.
        InputError: the profile has no times of a matrix.
    """
    step = rank_multiple(matrices, multiple)
    ladders = [
        Ladder.of(matrix, energies[matrix.name], multiple=step, centred=centred)
        if matrix.name in energies
        else Ladder.of_unreached(matrix)
        for matrix in matrices
    ]
    if plain:
        ladders = [replace(each, plain=plain[each.matrix.name]) if each.is_measured else each for each in ladders]
    for ladder in ladders:
        largest = ladder.matrix.largest_rank(centred=centred)
        if (
            ladder.is_measured and len(ladder.ranks) == 1 and largest > 0
        ):  # a matrix that no rank makes smaller stays dense
            raise UsageError(
                f"ranks.multiple is {step}, but {ladder.matrix.name} ({ladder.matrix.m} x {ladder.matrix.n}) "
                f"breaks even above rank {largest}: set ranks.multiple to at most {largest}"
            )
    return ladders if latency is None else latency.drop_slow_ranks(ladders, step=step, centred=centred)


Pruned = Mapping[Channels, ChannelScores]
"""The FFNs that are pruned, with the scores of their channels."""


def by_sublayer(ladders: Sequence[Ladder]) -> dict[str, list[Ladder]]:
    """Group ladders by sublayer, in order."""
    return {name: list(group) for name, group in groupby(ladders, key=lambda ladder: ladder.matrix.sublayer)}


def sizes_of(ladders: Sequence[Ladder], pruned: Iterable[Channels] = ()) -> dict[str, int]:
    """Linear parameters of every sublayer, in model order."""
    found = {name: sum(ladder.matrix.parameters for ladder in group) for name, group in by_sublayer(ladders).items()}
    return _in_order(found | {each.sublayer: each.parameters for each in pruned})


def reach_of(ladders: Sequence[Ladder], pruned: Iterable[Channels] = ()) -> dict[str, float]:
    """The largest compression ratio of every sublayer: all its matrices on their lowest rungs, or the least width."""
    found = {
        name: 1 - sum(ladder.costs[0] for ladder in group) / sum(ladder.matrix.parameters for ladder in group)
        for name, group in by_sublayer(ladders).items()
    }
    return _in_order(found | {each.sublayer: 1 - each.least / each.count for each in pruned})


def allocate_ranks(
    name: str,
    ladders: Sequence[Ladder],
    ratios: Mapping[str, float],
    *,
    compression: float,
    pruned: Pruned | None = None,
    **options: Any,
) -> list[Rank]:
    """The rank or width of every matrix, in order; the parameter budget is never exceeded.

    Args:
        name, options: the rule and its keyword arguments.
        ladders: of all matrices that are factorized, in model order.
        ratios: compression ratio by sublayer.
        compression: fraction of all linear parameters to remove.
        pruned: the FFNs that are not factorized.

    Raises:
        UsageError: unknown rule or option, a compression or ratio that is out of reach, or what the rule itself refuses.
    """
    channels = pruned or {}
    matrices = [*(ladder.matrix for ladder in ladders), *(matrix for each in channels for matrix in each.matrices)]
    load_method("ranks", name, options)
    floor = sum(ladder.costs[0] for ladder in ladders) + sum(each.least * each.cost for each in channels)
    check_reachable(sum(matrix.parameters for matrix in matrices), floor, compression, explain_unmeasured(ladders))
    check_method("ranks", name, ladders, compression, **options)
    budget = parameter_budget(matrices, compression)
    return allocate_within(name, ladders, ratios, budget, compression=compression, pruned=channels, **options)


def allocate_within(
    name: str,
    ladders: Sequence[Ladder],
    ratios: Mapping[str, float],
    budget: int,
    *,
    compression: float,
    pruned: Pruned,
    **options: Any,
) -> list[Rank]:
    """The same for some blocks of a model within `budget` parameters of theirs; nothing is asked of the model as a whole.

    Raises:
        UsageError: as `allocate_ranks`.
    """
    rule, traits = load_method("ranks", name, options), method_traits("ranks", name)
    compared = [ladder.as_compared() for ladder in ladders]
    rungs = [0] * len(ladders) if traits.whole_model else _by_ratios(rule, compared, ratios, options)
    widths = {channels: channels.width(ratios[channels.sublayer]) for channels in pruned}
    cost = sum(ladder.costs[rung] for ladder, rung in zip(ladders, rungs, strict=True))
    widths = _trim_widths(widths, budget - cost)
    wide = sum(width * channels.cost for channels, width in widths.items())
    if cost + wide > budget:
        raise UsageError(
            f"the ratios keep {cost + wide:,} parameters, more than the {budget:,} that compression {compression} allows: "
            "compute the ratios for this compression"
        )
    if traits.whole_model:
        rungs = rule(compared, budget - wide, **options)
    elif not traits.verbatim:
        rungs = refill(compared, rungs, budget - wide)
    low = [Rank.at(ladder, rung) for ladder, rung in zip(ladders, rungs, strict=True)]
    narrow = [rank for channels, width in widths.items() for rank in _narrow(channels, width, pruned[channels])]
    return sorted([*low, *narrow], key=lambda rank: rank.matrix.block)


def _by_ratios(
    rule: Callable[..., list[int]], ladders: Sequence[Ladder], ratios: Mapping[str, float], options: Mapping[str, Any]
) -> list[int]:
    """The rungs of a rule that sees one sublayer at a time, each within what its ratio leaves."""
    rungs: list[int] = []
    for sublayer, group in by_sublayer(ladders).items():
        kept = int((1 - ratios[sublayer]) * sum(ladder.matrix.parameters for ladder in group) + 1e-6)
        if kept < (floor := sum(ladder.costs[0] for ladder in group)):
            raise UsageError(
                f"the ratio {ratios[sublayer]} of sublayer {sublayer} leaves {kept:,} parameters, but its lowest ranks take {floor:,}: "
                f"compute the ratios with the same ranks.multiple and factors.method{explain_unmeasured(group)}"
            )
        rungs += rule(group, kept, **options)
    return rungs


def _trim_widths(widths: Mapping[Channels, int], budget: int) -> dict[Channels, int]:
    """Widths that give back what exceeds the budget, one step of each FFN at a time from the last backwards, as far as they can."""
    found = dict(widths)
    excess = sum(width * channels.cost for channels, width in found.items()) - budget
    while excess > 0:
        able = [each for each, width in found.items() if width - each.pruning.multiple >= each.least]
        if not able:
            break
        for channels in reversed(able):
            if excess > 0:
                found[channels] -= channels.pruning.multiple
                excess -= channels.pruning.multiple * channels.cost
    return found


def _narrow(channels: Channels, width: int, scores: ChannelScores) -> Iterator[Rank]:
    """The outcome for the matrices of an FFN at a width."""
    for matrix in channels.matrices:
        energy = scores.kept_energy(matrix.local, width, channels.pruning.keep_least)
        yield Rank(matrix, None, width * matrix.parameters // channels.count, energy, width)


def _in_order(sublayers: Mapping[str, T]) -> dict[str, T]:
    """By block; inside a block as given."""
    return dict(sorted(sublayers.items(), key=lambda item: int(item[0].partition(".")[0])))
