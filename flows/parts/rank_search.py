"""The part of `flows.compress` and `flows.search` that finds ranks by trials on validation text (`mgaa.search`).

candidates -> random allocations -> windows -> reference -> (proposal -> trials) again and again -> the best ranks

Every arrow is a cached step, so a killed search resumes at the trial where it stopped, another seed shares windows and reference, and one
more evaluation costs one more trial.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefect import unmapped

from flows.command.runner import limit_threads, worker_count
from flows.parts.inputs import Inputs, factorizer_of
from flows.parts.prepared import Prepared
from mgaa.errors import InputError, NumericalError
from tasks.artifacts.files import PROPOSAL, RANKS, backbone_matrices, read_table
from tasks.artifacts.specs import OptimizerSpec, WindowSpec
from tasks.cache.artifact import Artifact, Store
from tasks.config.parameters import Parameters
from tasks.planning.preflight import adds_biases, preflight_search
from tasks.planning.recipes import RANDOM, Recipe, both_levels
from tasks.search.publish import MgaaBaseline, publish_search
from tasks.search.run_trial import SearchContext, TrialResult, measure_trial, run_trial
from tasks.search.trials import Search, Trial, known_trials, place_of, search_identity, trial_entry
from tasks.steps.allocate_point import allocate_point
from tasks.steps.allocate_ranks import allocate_ranks
from tasks.steps.allocate_ratios import allocate_ratios
from tasks.steps.choose_windows import choose_windows
from tasks.steps.keep_reference import keep_reference
from tasks.steps.measure import measure
from tasks.steps.propose import propose
from tasks.steps.take_best import take_best
from tasks.steps.tokenize import tokenize
from tasks.steps.try_ranks import try_ranks
from tasks.tracking.run import Run

SELECTION_SEED = 0
"""Of the random allocations that choose the windows: the same for every search, so that all of them are measured on the same text (they are
the first that random search with this seed and one group tries)."""


def prepare_context(prepared: Prepared) -> SearchContext:
    """Prepare what the searches of a run share, with the space of the section `search`."""
    params, given = prepared.params, prepared.params.search
    space = {"compression": params.ratios.compression, **given.space}
    batch_size, device, windows = params.evaluation.batch_size, prepared.device, candidate_windows(prepared)
    if given.selects:
        windows = choose_candidates(prepared, windows, {**space, "groups": 1})
    reference = None
    if given.divergence:
        reference = keep_reference(prepared.store, prepared.backbone, windows, batch_size=batch_size, device=device)
    return SearchContext(
        prepared.backbone,
        prepared.spectra,
        windows,
        reference,
        space,
        params.ranks.multiple,
        given.divergence,
        batch_size,
        device,
    )


def candidate_windows(inputs: Inputs) -> Artifact:
    """The validation windows that a search chooses from, or takes as they are.

    Raises:
        InputError: the validation text has fewer.
    """
    given, validation = inputs.params.search, inputs.params.data.validation
    name = "candidates" if given.selects else "windows"
    cut: dict[str, Any] = {"length": validation.length, "seed": validation.seed, "samples": getattr(given, name)}
    try:
        found: Artifact = tokenize(inputs.store, inputs.backbone, inputs.texts, section="validation", **cut)
    except InputError as error:
        raise InputError(f"search.{name} is {cut['samples']}: {error} Here `samples` is search.{name}.") from error
    return found


def choose_candidates(prepared: Prepared, candidates: Artifact, space: dict[str, Any]) -> Artifact:
    """The windows that tell random allocations apart, whatever the groups of the search are."""
    from mgaa.search.optimizer import draw_point
    from mgaa.search.space import space_of

    params, store, backbone = prepared.params, prepared.store, prepared.backbone
    dimensions = len(space_of(backbone_matrices(store, backbone), **space))
    points = [draw_point(SELECTION_SEED, number, dimensions) for number in range(params.search.selection)]
    same: dict[str, Any] = {
        "store": unmapped(store),
        "backbone": unmapped(backbone),
        "spectra": unmapped(prepared.spectra),
    }
    with limit_threads(worker_count(params)):
        ranks = allocate_point.map(point=points, space=unmapped(space), multiple=params.ranks.multiple, **same).result()
        windows = WindowSpec(params.data.validation.length, None, params.evaluation.batch_size)
        futures = measure.map(tokens=unmapped(candidates), ranks=ranks, windows=windows, device=prepared.device, **same)
        ended: list[Any] = futures.result(raise_on_failure=False)
    if errors := [each for each in ended if isinstance(each, BaseException) and not isinstance(each, NumericalError)]:
        raise errors[0]
    found = [each for each in ended if isinstance(each, Artifact)]
    if len(found) < 2:
        raise NumericalError(
            f"{len(found)} of {len(ended)} random allocations could be measured, expected at least 2 to choose windows by: load the "
            f"model in bfloat16 or float32 (backbone.dtype), or set search.selection=0; the last one: {ended[-1]}"
        )
    return choose_windows(store, candidates, found, number=params.search.windows)


def search_ranks(prepared: Prepared, run: Run, wanted: Mapping[str, Recipe]) -> dict[str, Search]:
    """The searches among the recipes of a run, by the name of the model; what they found is published."""
    searching = {name: recipe.search for name, recipe in wanted.items() if recipe.search is not None}
    if not searching:
        return {}
    params, store = prepared.params, prepared.store
    context = prepare_context(prepared)
    earlier_trials(params, store, context)  # what does not fit is reported before the first trial
    mgaa = measure_baseline(prepared, context)
    found = {}
    for name, method in searching.items():
        start = params.search.start if name == params.method else RANDOM
        given: dict[str, Any] = {"name": name, "method": method, "start": start, "seed": params.search.seed}
        found[name] = run_search(params, store, context, run, **given, nearest=mgaa.ranks)
    publish_search(params.folder, store, prepared.statistics, [*found.values()], mgaa)
    return found


def run_search(
    params: Parameters,
    store: Store,
    context: SearchContext,
    run: Run,
    *,
    name: str,
    method: str,
    start: str,
    seed: int,
    nearest: Artifact,
) -> Search:
    """One search; each of its trials is a child run in MLflow.

    Args:
        context: with the space of this search.
        nearest: ranks of MGAA, the first trial where `start` is `mgaa`.

    Raises:
        NumericalError: no trial could be measured.
    """
    import torch

    from mgaa.search.space import space_of

    given, space = params.search, space_of(backbone_matrices(store, context.backbone), **context.space)
    first = space.nearest(kept_shares(store, context.backbone, nearest)) if start == "mgaa" else None
    earlier = earlier_trials(params, store, context) if method != RANDOM else []
    if earlier and first is None:  # measured again here, the best of them can be the result
        first = min(earlier, key=lambda trial: trial["objective"])["point"]
    at_once = max(given.batch, worker_count(params)) if method == RANDOM else given.batch
    optimizer = OptimizerSpec(method, len(space), seed, given.initial, first)
    trials: list[Trial] = []
    while (done := len(trials)) < given.evaluations:
        count = min(at_once, given.evaluations - done)
        seen = [] if method == RANDOM else trials  # what was found is nothing to a random search
        measured = [trial for trial in seen if trial.tried.trial is not None]
        proposal = propose(
            store,
            [trial.tried.trial for trial in measured if trial.tried.trial is not None],
            points=[trial.point for trial in measured],
            failed=[trial.point for trial in seen if trial.tried.trial is None],
            earlier=earlier,
            optimizer=optimizer,
            first=done,
            count=count,
        )
        points, seconds = read_table(store, proposal, PROPOSAL)["points"], store.manifest(proposal)["facts"]
        with limit_threads(min(count, worker_count(params))):
            threads = torch.get_num_threads()
            running = [
                run_trial.submit(store, f"{name}-{done + index}", point, context, threads)
                for index, point in enumerate(points)
            ]
            ended: list[TrialResult] = [future.result() for future in running]
        for point, tried in zip(points, ended, strict=True):
            trial = Trial(point, tried, proposal, seconds["proposal_seconds"] / count)
            record_trial(run, store, context, f"{name}-{len(trials)}", trial)
            trials.append(trial)
    if not any(trial.tried.trial for trial in trials):
        raise NumericalError(
            f"all {len(trials)} trials of the search {name} failed, expected at least one that can be measured; the last one: "
            f"{trials[-1].tried.error}"
        )
    kept = [(t.tried.trial, t.tried.ranks) for t in trials if t.tried.trial is not None and t.tried.ranks is not None]
    proposals = [*dict.fromkeys(trial.proposal for trial in trials)]
    best = take_best(store, [trial for trial, _ in kept], [ranks for _, ranks in kept], proposals)
    return Search(name, method, context.space["groups"], start, seed, context, trials, best, earlier)


def earlier_trials(params: Parameters, store: Store, context: SearchContext) -> list[dict[str, Any]]:
    """The trials of `search.history`.

    Raises:
        UsageError: they are of another model, space, factors, windows or objective.
    """
    return [] if params.search.history is None else known_trials(params.search.history, search_identity(store, context))


def record_trial(run: Run, store: Store, context: SearchContext, name: str, trial: Trial) -> None:
    """The trial as a child run."""
    found = trial_entry(store, context, trial)
    shares = {f"share/{variable}": share for variable, share in found.pop("shares").items()}
    values = {key: value for key, value in found.items() if key not in ("point", "error")}
    run.log_child(name, shares, values, seconds=trial.tried.seconds, error=trial.tried.error)


def kept_shares(store: Store, backbone: Artifact, ranks: Artifact) -> dict[str, float]:
    """The share of its parameters that each matrix keeps, by name."""
    outcome = read_table(store, ranks, RANKS)["matrices"]
    return {
        matrix.name: outcome[matrix.name]["parameters"] / matrix.parameters
        for matrix in backbone_matrices(store, backbone)
    }


def allocate_both_levels(prepared: Prepared) -> tuple[Artifact, Artifact]:
    """Ratios and ranks of both levels, which need no trial."""
    store, backbone, recipe = prepared.store, prepared.backbone, both_levels(prepared.params)
    centred = adds_biases(factorizer_of(prepared.params))
    ratios = allocate_ratios(
        store,
        backbone,
        prepared.statistics,
        ratios=recipe.ratios,
        target=recipe.target,
        centred=centred,
        residual=recipe.residual,
    )
    return ratios, allocate_ranks(
        store, backbone, prepared.spectra, [], ratios, prepared.plain, ranks=recipe.ranks, target=recipe.target
    )


def measure_baseline(prepared: Prepared, context: SearchContext) -> MgaaBaseline:
    """MGAA by the sections `ratios` and `ranks`, measured like a trial."""
    ratios, ranks = allocate_both_levels(prepared)
    try:
        return MgaaBaseline(ratios, ranks, measure_trial(try_ranks, prepared.store, context, ranks))
    except NumericalError as error:
        return MgaaBaseline(ratios, ranks, None, str(error))


def preflight_groups(params: Parameters, store: Store, backbone: Artifact, groups: int) -> None:
    """Refuse what the search of `params.search` with that many groups would be refused for later, before anything is measured.

    Raises:
        UsageError: the space does not fit the model or the budget, `search.history` is of another model or space, or optuna is missing.
        InputError: `search.history` cannot be read.
    """
    from mgaa.search.optimizer import require_method

    given, space = params.search, {"compression": params.ratios.compression, **params.search.space, "groups": groups}
    require_method(given.method)
    preflight_search(store, backbone, factorizer_of(params), space, params.ranks.multiple)
    if given.history is not None:
        known_trials(given.history, place_of(store, backbone, space, params.ranks.multiple))


def with_groups(context: SearchContext, groups: int) -> SearchContext:
    """The context with another number of groups."""
    return replace(context, space={**context.space, "groups": groups})
