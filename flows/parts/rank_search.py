"""The part of `flows.compress` and `flows.search` that finds ranks by trials on validation text (`mgaa.search`).

candidates -> random allocations -> windows -> reference -> (proposal -> trials) again and again -> the best ranks

Every arrow is a cached step, so a search that was killed goes on at the trial where it stopped, another seed shares windows and reference,
and one more evaluation costs one more trial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefect import unmapped

from flows.command.runner import share_of_cores, workers
from mgaa.errors import InputError, NumericalError
from tasks.artifacts.files import PROPOSAL, RANKS, backbone_matrices, table
from tasks.cache.artifact import Artifact, Store
from tasks.config.parameters import Parameters
from tasks.planning.preflight import adds_biases, rehearse_search
from tasks.planning.recipes import RANDOM, Recipe, both_levels
from tasks.search.publish import Beside, publish
from tasks.search.run_trial import Ground, Tried, run_trial
from tasks.search.trials import Search, Trial, entry, identity, known, place_of
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


def prepared_ground(
    p: Parameters, store: Store, backbone: Artifact, texts: Artifact, spectra: list[Artifact], device: str
) -> Ground:
    """What the searches of a run share; the space is that of `search`."""
    given = p.search
    space = {"compression": p.ratios.compression, **given.space}
    measured: dict[str, Any] = {"batch_size": p.evaluation.batch_size, "device": device}
    windows = candidates_of(p, store, backbone, texts)
    if given.selects:
        windows = chosen(p, store, backbone, windows, spectra, {**space, "groups": 1}, measured)
    reference = keep_reference(store, backbone, windows, **measured) if given.divergence else None
    measured |= {"divergence": given.divergence}
    return Ground(backbone, spectra, windows, reference, space, p.ranks.multiple, measured)


def candidates_of(p: Parameters, store: Store, backbone: Artifact, texts: Artifact) -> Artifact:
    """The validation windows that a search chooses from, or takes as they are.

    Raises:
        InputError: the validation text has fewer.
    """
    given, validation = p.search, p.data.validation
    name = "candidates" if given.selects else "windows"
    cut: dict[str, Any] = {"length": validation.length, "seed": validation.seed, "samples": getattr(given, name)}
    try:
        found: Artifact = tokenize(store, backbone, texts, section="validation", **cut)
    except InputError as error:
        raise InputError(f"search.{name} is {cut['samples']}: {error} Here `samples` is search.{name}.") from error
    return found


def chosen(
    p: Parameters,
    store: Store,
    backbone: Artifact,
    candidates: Artifact,
    spectra: list[Artifact],
    space: dict[str, Any],
    measured: Mapping[str, Any],
) -> Artifact:
    """The windows that tell random allocations apart, whatever the groups of the search are."""
    from mgaa.search.optimizer import drawn
    from mgaa.search.space import space_of

    dimensions = len(space_of(backbone_matrices(store, backbone), **space))
    points = [drawn(SELECTION_SEED, number, dimensions) for number in range(p.search.selection)]
    same: dict[str, Any] = {"store": unmapped(store), "backbone": unmapped(backbone), "spectra": unmapped(spectra)}
    with share_of_cores(workers(p)):
        ranks = allocate_point.map(point=points, space=unmapped(space), multiple=p.ranks.multiple, **same).result()
        cut: dict[str, Any] = {"tokens": unmapped(candidates), "length": p.data.validation.length, "stride": None}
        futures = measure.map(ranks=ranks, **cut, **measured, **same)
        ended: list[Any] = futures.result(raise_on_failure=False)
    if errors := [each for each in ended if isinstance(each, BaseException) and not isinstance(each, NumericalError)]:
        raise errors[0]
    found = [each for each in ended if isinstance(each, Artifact)]
    if len(found) < 2:
        raise NumericalError(
            f"{len(found)} of {len(ended)} random allocations could be measured, expected at least 2 to choose windows by: load the "
            f"model in bfloat16 or float32 (backbone.dtype), or set search.selection=0; the last one: {ended[-1]}"
        )
    return choose_windows(store, candidates, found, number=p.search.windows)


def searched(
    p: Parameters,
    store: Store,
    run: Run,
    backbone: Artifact,
    texts: Artifact,
    statistics: Artifact,
    spectra: list[Artifact],
    wanted: Mapping[str, Recipe],
    device: str,
) -> dict[str, Search]:
    """The searches among the recipes of a run, by the name of the model; what they found is published."""
    searching = {name: recipe.search for name, recipe in wanted.items() if recipe.search is not None}
    if not searching:
        return {}
    ground = prepared_ground(p, store, backbone, texts, spectra, device)
    earlier_of(p, store, ground)  # what does not fit is said before the first trial
    mgaa = beside(p, store, ground, statistics)
    found = {}
    for name, method in searching.items():
        start = p.search.start if name == p.method else RANDOM
        given: dict[str, Any] = {"name": name, "method": method, "start": start, "seed": p.search.seed}
        found[name] = run_search(p, store, ground, run, **given, nearest=mgaa.ranks)
    publish(p.folder, store, statistics, [*found.values()], mgaa)
    return found


def run_search(
    p: Parameters,
    store: Store,
    ground: Ground,
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
        ground: with the space of this search.
        nearest: ranks of MGAA, the first trial where `start` is `mgaa`.

    Raises:
        NumericalError: no trial could be measured.
    """
    import torch

    from mgaa.search.space import space_of

    given, space = p.search, space_of(backbone_matrices(store, ground.backbone), **ground.space)
    first = space.nearest(kept_shares(store, ground.backbone, nearest)) if start == "mgaa" else None
    earlier = earlier_of(p, store, ground) if method != RANDOM else []
    if earlier and first is None:  # measured again here, the best of them can be the result
        first = min(earlier, key=lambda trial: trial["objective"])["point"]
    at_once = max(given.batch, workers(p)) if method == RANDOM else given.batch
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
            method=method,
            dimensions=len(space),
            first=done,
            count=count,
            seed=seed,
            initial=given.initial,
            start=first,
        )
        points, seconds = table(store, proposal, PROPOSAL)["points"], store.manifest(proposal)["facts"]
        with share_of_cores(min(count, workers(p))):
            threads = torch.get_num_threads()
            running = [
                run_trial.submit(store, f"{name}-{done + index}", point, ground, threads)
                for index, point in enumerate(points)
            ]
            ended: list[Tried] = [future.result() for future in running]
        for point, tried in zip(points, ended, strict=True):
            trial = Trial(point, tried, proposal, seconds["proposal_seconds"] / count)
            record(run, store, ground, f"{name}-{len(trials)}", trial)
            trials.append(trial)
    if not any(trial.tried.trial for trial in trials):
        raise NumericalError(
            f"all {len(trials)} trials of the search {name} failed, expected at least one that can be measured; the last one: "
            f"{trials[-1].tried.error}"
        )
    kept = [(t.tried.trial, t.tried.ranks) for t in trials if t.tried.trial is not None and t.tried.ranks is not None]
    proposals = [*dict.fromkeys(trial.proposal for trial in trials)]
    best = take_best(store, [trial for trial, _ in kept], [ranks for _, ranks in kept], proposals)
    return Search(name, method, ground.space["groups"], start, seed, ground, trials, best, earlier)


def earlier_of(p: Parameters, store: Store, ground: Ground) -> list[dict[str, Any]]:
    """The trials of `search.history`.

    Raises:
        UsageError: they are of another model, space, factors, windows or objective.
    """
    return [] if p.search.history is None else known(p.search.history, identity(store, ground))


def record(run: Run, store: Store, ground: Ground, name: str, trial: Trial) -> None:
    """The trial as a child run."""
    found = entry(store, ground, trial)
    shares = {f"share/{variable}": share for variable, share in found.pop("shares").items()}
    values = {key: value for key, value in found.items() if key not in ("point", "error")}
    run.log_child(name, shares, values, seconds=trial.tried.seconds, error=trial.tried.error)


def kept_shares(store: Store, backbone: Artifact, ranks: Artifact) -> dict[str, float]:
    """The share of its parameters that each matrix keeps, by name."""
    outcome = table(store, ranks, RANKS)["matrices"]
    return {
        matrix.name: outcome[matrix.name]["parameters"] / matrix.parameters
        for matrix in backbone_matrices(store, backbone)
    }


def levels(
    p: Parameters, store: Store, backbone: Artifact, statistics: Artifact, spectra: Sequence[Artifact]
) -> tuple[Artifact, Artifact]:
    """Ratios and ranks of both levels, which need no trial."""
    recipe, centred = both_levels(p), adds_biases((p.factors.method, p.factors.options))
    ratios = allocate_ratios(store, backbone, statistics, **recipe.level1(centred=centred))
    return ratios, allocate_ranks(store, backbone, spectra, [], ratios, **recipe.level2)


def beside(p: Parameters, store: Store, ground: Ground, statistics: Artifact) -> Beside:
    """MGAA by the sections `ratios` and `ranks`, measured like a trial."""
    ratios, ranks = levels(p, store, ground.backbone, statistics, ground.spectra)
    shared = ground.backbone, ground.windows, ground.reference, ground.spectra
    try:
        return Beside(ratios, ranks, try_ranks(store, *shared, ranks, **ground.measured))
    except NumericalError as error:
        return Beside(ratios, ranks, None, str(error))


def rehearsed(p: Parameters, store: Store, backbone: Artifact, groups: int) -> None:
    """Refuse what the search of `p.search` with that many groups would be refused for later, before anything is measured.

    Raises:
        UsageError: the space does not fit the model or the budget, `search.history` is of another model or space, or optuna is missing.
        InputError: `search.history` cannot be read.
    """
    from mgaa.search.optimizer import require

    given, space = p.search, {"compression": p.ratios.compression, **p.search.space, "groups": groups}
    require(given.method)
    rehearse_search(store, backbone, (p.factors.method, p.factors.options), space, p.ranks.multiple)
    if given.history is not None:
        known(given.history, place_of(store, backbone, space, p.ranks.multiple))


def within(ground: Ground, groups: int) -> Ground:
    """The same with another number of groups."""
    return replace(ground, space={**ground.space, "groups": groups})
