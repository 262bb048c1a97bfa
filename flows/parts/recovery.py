"""The part of `flows.compress` that tunes the compressed checkpoint to recover what compression lost."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flows.parts.device import resolve_device
from flows.parts.evaluation import ModelEvaluation
from flows.parts.prepared import Prepared
from flows.prepare_data import text_arguments
from tasks.cache.artifact import Artifact, Store
from tasks.config.parameters import Parameters
from tasks.results.publish import Compressed
from tasks.steps.ask_examples import ask_examples
from tasks.steps.collect_recovered import collect_recovered
from tasks.steps.make_examples import make_examples
from tasks.steps.read_texts import source_content
from tasks.steps.recover import recover


def plan_of(params: Parameters) -> dict[str, Any] | None:
    """Arguments of `mgaa.recovery.Plan` for this machine, checked; null where nothing is recovered.

    `precision: auto` is resolved, because what it stands for is part of what the result depends on.

    Raises:
        UsageError: the plan cannot run, here or at all, or a package is missing.
    """
    if params.recovery.method == "none":
        return None
    import torch

    from mgaa.recovery import Plan, require_packages
    from mgaa.recovery.precision import resolve_precision

    plan = Plan(**params.recovery.plan)
    require_packages(plan)
    return {
        **params.recovery.plan,
        "precision": resolve_precision(plan.precision, torch.device(resolve_device(params))),
    }


def examples_of(
    params: Parameters, store: Store, backbone: Artifact, texts: Artifact, questions: Artifact | None = None
) -> Artifact:
    """Training examples; they must not overlap with the `texts` of validation and evaluation, nor with the questions that are asked."""
    given = params.data.recovery
    if given.form == "questions":
        assert questions is not None, "they were prepared"
        asked: Artifact = ask_examples(store, backbone, questions)
        return asked
    return make_examples(
        store,
        backbone,
        texts,
        section=text_arguments(given),
        form=given.form,
        length=given.length,
        samples=given.samples,
        seed=given.seed,
        content=source_content(given.source),
    )


def recover_model(
    prepared: Prepared,
    evaluation: ModelEvaluation,
    examples: Artifact,
    model: Compressed,
    *,
    plan: Mapping[str, Any],
) -> Compressed:
    """The model after its recovery, evaluated like all others; the loss on the validation tokens chooses its best state.

    Args:
        plan: of `plan_of`.
    """
    store, validation = prepared.store, prepared.tokens["validation"]
    checkpoint = recover(store, model.checkpoint, examples, validation, plan=dict(plan), device=prepared.device)
    ranks = collect_recovered(store, prepared.backbone, model.ranks, checkpoint)
    tuned, evaluated = [model.checkpoint, examples], evaluation.evaluate(checkpoint)
    return replace(
        model, ranks=ranks, checkpoint=checkpoint, metrics=evaluated.metrics, untuned=tuned, answers=evaluated.answers
    )
