"""Bolaco in one call, in memory (arXiv 2405.10616): the search as a loop, through the same functions as the pipeline.

    report, trials = compress_by_search_(model, calibration, validation, compression=0.2)

One calibration and one decomposition serve all trials; each puts its factors into a twin that shares every other tensor with the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mgaa.checkpoints.meta_model import meta_copy
from mgaa.checkpoints.save import twin_of
from mgaa.decomposed import DecomposedModel, decompose_model
from mgaa.errors import NumericalError, UsageError
from mgaa.evaluation.causality import check_decoder
from mgaa.evaluation.perplexity import check_windows, eval_mode, perplexity
from mgaa.inputs.prompts import Prompts
from mgaa.inputs.readers import coerce_arguments, to_change
from mgaa.inputs.token_rows import Tokens, Windows, check_fit, sequences
from mgaa.inputs.token_rows import windows as windows_of
from mgaa.inputs.values import fraction, integer, names
from mgaa.inputs.values import number as number_of
from mgaa.levels import Target, adds_biases, check_groups, flat_ladders
from mgaa.models.architectures import matrices_of
from mgaa.models.fused import unfuse_
from mgaa.report import Report, build_report
from mgaa.search.objective import WEIGHT, objective, reference
from mgaa.search.optimizer import Found, draw_point, propose, require_method
from mgaa.search.selection import most_telling
from mgaa.search.space import Space, space_of
from mgaa.statistics.calibration import CalibrationSettings


@dataclass(frozen=True)
class Trial:
    """One trial of an allocation; `objective` is `None` where a loss was not finite, and `error` then has the message."""

    point: list[float]
    objective: float | None
    error: str = ""


@coerce_arguments(
    **{"model": to_change, "tokens": sequences, "validation": windows_of, "compression": fraction, "dense": names},
    **dict.fromkeys(("groups", "evaluations", "initial", "windows", "selection", "seed"), integer),
    **dict.fromkeys(("least", "divergence"), number_of),
)
def compress_by_search_(
    model: PreTrainedModel,
    tokens: Tokens,
    validation: Windows,
    *,
    compression: float = 0.2,
    factors: str = "pooled",
    method: str = "gp",
    groups: int = 1,
    dense: Sequence[str] = ("v",),
    least: float = 0.2,
    evaluations: int = 50,
    initial: int = 3,
    windows: int = 100,
    selection: int = 20,
    divergence: float = WEIGHT,
    multiple: int | str = "auto",
    seed: int = 0,
    measuring: CalibrationSettings | None = None,
) -> tuple[Report, list[Trial]]:
    """Compress a transformers causal language model in place, by the best allocation that a search finds.

    Args:
        model: with an entry in `mgaa.models.entries`.
        tokens: as in `mgaa.compress_`.
        validation: token ids in any form of `mgaa.inputs.token_rows`, of one length: windows that are neither calibration nor test text.
        compression: fraction of the parameters of the decoder blocks' linears to remove, in (0, 1).
        factors: the factorizer.
        method, evaluations, initial, seed: settings of the search (`mgaa.search.optimizer`).
        groups, dense, least: settings of the space (`mgaa.search.space`).
        windows, selection: number of validation windows to use, and number of random allocations that choose them; with a `selection` of 0
            the first windows are used. All of them are used if there are no more than `windows`.
        divergence: weight of the divergence in the objective (`mgaa.search.objective`).
        multiple: the step between ranks.
        measuring: settings of the calibration; by default as in `mgaa.compress_`.

    Returns:
        The report, and every trial in order.

    Raises:
        UsageError: a parameter is out of reach or unknown; raised before anything is measured.
        InputError: the model or the tokens cannot be used.
        NumericalError: a weight or an activation is not finite, or no trial could be measured.
    """
    require_method(method)
    for name, value, least_value in (("evaluations", evaluations, 1), ("initial", initial, 1), ("windows", windows, 1)):
        if value < least_value:
            raise UsageError(f"{name} is {value}, expected a whole number from {least_value}")
    if selection == 1 or selection < 0 or divergence < 0:
        raise UsageError(
            f"selection is {selection} and divergence is {divergence}, expected 0 or at least 2 allocations to choose windows by, and a "
            "weight from 0"
        )
    assert isinstance(validation, Tensor)
    assert isinstance(tokens, Prompts | Tensor)
    check_windows(model, validation.flatten(), validation.shape[1], None)
    matrices = matrices_of(unfuse_(meta_copy(model)))
    space = space_of(matrices, compression=compression, groups=groups, dense=dense, least=least)
    target, chosen, calibration = (
        Target(compression, multiple),
        (factors, dict[str, Any]()),
        measuring or CalibrationSettings(),
    )
    space.check(flat_ladders(matrices, target, centred=adds_biases(chosen)))
    check_groups(chosen, calibration.groups, len(tokens))
    check_fit(tokens, model)
    unfuse_(model)
    with eval_mode(model):
        check_decoder(model)
        shared = decompose_model(model, tokens, matrices, target, calibration, chosen)
        if selection and len(validation) > windows:
            coarse = space_of(matrices, compression=compression, dense=dense, least=least)
            validation = validation[_choose_windows(model, shared, coarse, validation, windows, selection)]
        else:
            validation = validation[:windows]
        hidden = reference(twin_of(model), validation) if divergence else None
        trials: list[Trial] = []
        for number in tqdm(range(evaluations), desc="searching ranks", disable=None):
            point = propose(method, _found(trials), dimensions=len(space), first=number, seed=seed, initial=initial)[0]
            try:
                score = objective(_compress_at(model, shared, space, point), validation, hidden, weight=divergence)
                trials.append(Trial(point, score.objective))
            except NumericalError as error:
                trials.append(Trial(point, None, str(error)))
        values = {index: trial.objective for index, trial in enumerate(trials) if trial.objective is not None}
        if not values:
            raise NumericalError(
                f"all {evaluations} trials failed, expected one that can be measured; the last: {trials[-1].error}"
            )
        ratios, ranks = space.allocate(shared.ladders, trials[min(values, key=lambda index: values[index])].point)
        shared.put_(model, ranks)
        return build_report(ranks, ratios, shared.cosines, space.budget), trials


def _compress_at(model: PreTrainedModel, shared: DecomposedModel, space: Space, point: list[float]) -> PreTrainedModel:
    """Return the model compressed at a point; `model` stays unchanged."""
    twin = twin_of(model)
    shared.put_(twin, space.allocate(shared.ladders, point)[1])
    return twin


def _choose_windows(
    model: PreTrainedModel,
    shared: DecomposedModel,
    space: Space,
    windows: Int[Tensor, "n l"],
    number: int,
    allocations: int,
) -> Int[Tensor, " k"]:
    """Choose the windows that best distinguish random allocations."""
    points = [draw_point(0, index, len(space)) for index in range(allocations)]
    stream, length = windows.flatten(), windows.shape[1]
    measured = []
    for point in points:
        try:
            measured.append(perplexity(_compress_at(model, shared, space, point), stream, length=length))
        except NumericalError as error:  # no fault of the windows; the search may meet such a point as well
            failure = error
    if len(measured) < 2:
        raise NumericalError(
            f"{len(measured)} of {allocations} random allocations could be measured, expected at least 2 to choose windows by; the last "
            f"one: {failure}"
        )
    losses = torch.tensor([score.losses for score in measured], dtype=torch.float64)
    return most_telling(losses, measured[0].counts, number)[0]


def _found(trials: Sequence[Trial]) -> Found:
    measured = [(trial.point, trial.objective) for trial in trials if trial.objective is not None]
    failed = [trial.point for trial in trials if trial.objective is None]
    return Found([point for point, _ in measured], [value for _, value in measured], failed)
