"""Outcome of a search: its trials, in the order in which they were proposed, and the best of them.

As JSON (`results/search/search.json`) the trials can also start a later search (`search.history`), if that has the same
model, space, factors, windows and objective: a trial of anything else carries no information, so it is refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgaa.errors import InputError, UsageError
from tasks.artifacts.files import CARD, SEARCH, TRIAL, backbone_matrices, backbone_record, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import digest
from tasks.record.lineage import describe_lineage
from tasks.search.run_trial import SearchContext, TrialResult

MAKING = {"allocate_point", "choose_windows", "keep_reference", "measure", "propose", "take_best", "try_ranks"}
"""Tasks of a search, besides the tokens of its candidates."""


@dataclass(frozen=True)
class Trial:
    """One trial, what proposed its point, and the duration of that in seconds."""

    point: list[float]
    tried: TrialResult
    proposal: Artifact
    proposing: float


@dataclass(frozen=True)
class Search:
    """A completed search.

    Attributes:
        name: unique among the searches of the run.
        method, groups, start, seed: its settings.
        context: inputs that its trials share.
        trials: in the order of their proposals, the failed ones included.
        best: ranks and ratios of the best one.
        earlier: trials of an earlier search that it started with, each with `point` and `objective`.
    """

    name: str
    method: str
    groups: int
    start: str
    seed: int
    context: SearchContext
    trials: list[Trial]
    best: Artifact
    earlier: list[dict[str, Any]]

    def made_artifacts(self, store: Store) -> list[Artifact]:
        """Artifacts that were made to find its best ranks: the windows and their choice, the reference, proposals, ranks and trials."""
        lineage = describe_lineage(store, [self.best])
        own = [name for name, node in lineage.items() if node["task"] in MAKING]
        return [Artifact(*name.split("/", 1)) for name in own if name != f"{self.best.kind}/{self.best.digest}"]

    def number(self, measured: int) -> int:
        """Number among all trials of one that is counted among the measured ones."""
        return [number for number, trial in enumerate(self.trials) if trial.tried.trial is not None][measured]

    @property
    def measured_trials(self) -> list[Artifact]:
        """Trials that were measured."""
        return [trial.tried.trial for trial in self.trials if trial.tried.trial is not None]


def best_objective(store: Store, search: Search) -> float:
    """Objective of the best trial."""
    found: float = min(read_table(store, search.best, SEARCH)["objectives"])
    return found


def search_identity(store: Store, context: SearchContext) -> dict[str, Any]:
    """Conditions under which the trials of two searches are comparable, worded for the error message."""
    return {
        **place_of(store, context.backbone, context.space, context.multiple),
        "factors and calibration": digest([each.digest for each in context.spectra])[:16],
        "validation windows": read_table(store, context.windows, CARD)["token_digest"][:16],
        "weight of the divergence": context.divergence,
    }


def place_of(store: Store, backbone: Artifact, space: Mapping[str, Any], multiple: int | str) -> dict[str, Any]:
    """Part of the identity that is known before anything is measured: the model, and the variables of the space."""
    from mgaa.search.space import space_of

    found = space_of(backbone_matrices(store, backbone), **space)
    variables = {variable.name: variable.parameters for variable in found.variables}
    return {
        "model": digest(backbone_record(store, backbone)["files"])[:16],
        "space": {"variables": variables, "least": found.least, "budget": found.budget, "multiple": multiple},
    }


def search_state(store: Store, searches: Sequence[Search]) -> dict[str, Any]:
    """Content of `search.json`."""
    return {
        search.name: {
            **{name: getattr(search, name) for name in ("method", "groups", "start", "seed")},
            "identity": search_identity(store, search.context),
            "best": search.number(read_table(store, search.best, SEARCH)["best"]),
            "earlier": search.earlier,
            "trials": [trial_entry(store, search.context, trial) for trial in search.trials],
        }
        for search in searches
    }


def trial_entry(store: Store, context: SearchContext, trial: Trial) -> dict[str, Any]:
    """Entry of one trial, for readers and for a later search."""
    from mgaa.search.space import space_of

    space = space_of(backbone_matrices(store, context.backbone), **context.space)
    found: dict[str, Any] = {
        "point": trial.point,
        "shares": {variable.name: share for variable, share in space.shares(trial.point).items()},
        "seconds": trial.tried.seconds,
        "proposal_seconds": trial.proposing,
    }
    if trial.tried.trial is None:
        return {**found, "error": " ".join(str(trial.tried.error).split())}
    measured = read_table(store, trial.tried.trial, TRIAL)
    evaluation = store.manifest(trial.tried.trial)["facts"]["evaluation_seconds"]
    names = ("objective", "perplexity", "divergence")
    return {**found, **{name: measured[name] for name in names}, "evaluation_seconds": evaluation}


def read_history(path: str) -> dict[str, Any]:
    """Read the file of an earlier search.

    Raises:
        InputError: the file is missing, damaged, or not one of a search.
    """
    remedy = "give results/search/search.json of a run, or leave search.history out"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"search.history is {path}, which cannot be read ({error.strerror}): {remedy}") from error
    except ValueError as error:
        raise InputError(f"search.history is {path}, which is not JSON ({error}): {remedy}") from error
    searches = content.get("searches") if isinstance(content, dict) else None
    if not isinstance(searches, dict) or not searches or not all(is_sound(each) for each in searches.values()):
        raise InputError(f"search.history is {path}, which holds no search: {remedy}")
    return searches


def is_sound(search: Any) -> bool:
    """Tell whether this is a search as `search_state` writes it."""
    if not isinstance(search, dict) or not isinstance(search.get("identity"), dict):
        return False
    lists = search.get("earlier"), search.get("trials")
    if not all(isinstance(each, list) for each in lists):
        return False
    trials = [trial for each in lists for trial in each or []]
    return all(
        isinstance(trial, dict)
        and isinstance(trial.get("point"), list)
        and all(isinstance(value, float | int) and 0 <= value <= 1 for value in trial["point"])
        and isinstance(trial.get("objective", 0.0), float | int)
        for trial in trials
    )


def known_trials(path: str, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measured trials of a file that are comparable with those of a search; `wanted` is its identity, or the part known so far.

    Raises:
        InputError: as `read_history`.
        UsageError: no search in the file is comparable; the message has the differences of the first.
    """
    searches = read_history(path)
    fitting = [each for each in searches.values() if not differences(each["identity"], wanted)]
    if not fitting:
        name, first = next(iter(searches.items()))
        raise UsageError(
            f"search.history is {path}, whose search {name} has {'; '.join(differences(first['identity'], wanted))}: expected trials "
            "of the same model, space, factors, windows and objective; leave search.history out, or repeat the settings of that search"
        )
    return [
        {"point": trial["point"], "objective": trial["objective"]}
        for each in fitting
        for trial in [*each["earlier"], *each["trials"]]
        if "objective" in trial
    ]


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Differences between two identities, in words."""
    found = []
    for name, value in here.items():
        other = there.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found += [
                f"{name}: {key} {other.get(key)} there and {value[key]} here"
                for key in value
                if value[key] != other.get(key)
            ]
        elif value != other:
            found.append(f"another {name} ({other} there and {value} here)")
    return found
