"""The part of `flows.compress` that tunes the compressed checkpoint, so that what is left of the model makes up for what is gone."""

from collections.abc import Mapping
from typing import Any

from flows.evaluate import device
from flows.prepare_data import reading
from tasks.artifact import Artifact, Store
from tasks.collect_recovered import collect_recovered
from tasks.evaluate import evaluate
from tasks.make_examples import make_examples
from tasks.parameters import Parameters
from tasks.read_texts import source_content
from tasks.recover import recover
from tasks.results import Compressed


def plan_of(p: Parameters) -> dict[str, Any] | None:
    """Arguments of `mgaa.recovery.Plan` for this machine, checked; null where nothing is recovered.

    `precision: auto` is resolved, because what it stands for is part of what the result depends on.

    Raises:
        UsageError: the plan cannot run, here or at all, or a package is missing.
    """
    if p.recovery.method == "none":
        return None
    import torch

    from mgaa.recovery import Plan, require
    from mgaa.recovery.precision import resolve

    plan = Plan(**p.recovery.plan)
    require(plan)
    return {**p.recovery.plan, "precision": resolve(plan.precision, torch.device(device(p)))}


def examples_of(p: Parameters, store: Store, backbone: Artifact, texts: Artifact) -> Artifact:
    """What is trained on; it must not overlap with the `texts` of validation and evaluation."""
    given = p.data.recovery
    return make_examples(
        store,
        backbone,
        texts,
        section=reading(given),
        form=given.form,
        length=given.length,
        samples=given.samples,
        seed=given.seed,
        content=source_content(given.source),
    )


def recovered(
    p: Parameters,
    store: Store,
    backbone: Artifact,
    examples: Artifact,
    validation: Artifact,
    model: Compressed,
    *,
    plan: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> Compressed:
    """The model after its recovery, evaluated like all others.

    Args:
        validation: artifact `tokens`, by whose loss the best state is chosen.
        plan: of `plan_of`.
        measured: arguments of `evaluate`.
    """
    checkpoint = recover(store, model.checkpoint, examples, validation, plan=dict(plan), device=device(p))
    ranks = collect_recovered(store, backbone, model.ranks, checkpoint)
    metrics = evaluate(store, checkpoint, **measured)
    tuned = [model.checkpoint, examples]
    return Compressed(model.ratios, ranks, model.factors, checkpoint, metrics, model.scores, tuned, model.searched)
