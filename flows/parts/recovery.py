"""The part of `flows.compress` that tunes the compressed checkpoint, so that what is left of the model makes up for what is gone."""

from collections.abc import Mapping
from typing import Any

from flows.parts.measurement import ModelEvaluation, resolve_device
from flows.parts.questions import answer_questions
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
    """What is trained on; it must not overlap with the `texts` of validation and evaluation, nor with the questions that are asked."""
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
    params: Parameters,
    store: Store,
    backbone: Artifact,
    examples: Artifact,
    validation: Artifact,
    model: Compressed,
    *,
    plan: Mapping[str, Any],
    evaluation: ModelEvaluation,
    questions: Artifact | None = None,
) -> Compressed:
    """The model after its recovery, evaluated like all others.

    Args:
        validation: artifact `tokens`, by whose loss the best state is chosen.
        plan: of `plan_of`.
        evaluation: what it is measured on.
        questions: about images, which the model is asked again.
    """
    checkpoint = recover(store, model.checkpoint, examples, validation, plan=dict(plan), device=resolve_device(params))
    ranks = collect_recovered(store, backbone, model.ranks, checkpoint)
    metrics = evaluation.metrics(checkpoint)
    tuned = [model.checkpoint, examples]
    answers = answer_questions(params, store, checkpoint, questions, resolve_device(params))
    kept = model.scores, tuned, model.searched
    return Compressed(model.ratios, ranks, model.factors, checkpoint, metrics, *kept, answers)
