"""The part of the flows that asks vision-language models: questions about images, for exact match, and captions, for perplexity."""

import logging

from flows.parts.inputs import Inputs
from mgaa.errors import UsageError
from tasks.artifacts.files import backbone_record
from tasks.cache.artifact import Artifact, Store
from tasks.config.parameters import Parameters
from tasks.steps.answer import answer

logger = logging.getLogger(__name__)
BLIND = "calibrated on text alone: no statistic has seen an image token"


def check_calibration_images(params: Parameters, store: Store, backbone: Artifact) -> str | None:
    """The warning about a vision-language model that is calibrated on text; null where there is nothing to warn of.

    Raises:
        UsageError: questions about images for a model without a vision tower.
    """
    record = backbone_record(store, backbone)
    sets = [f"data.questions ({each.name})" for each in params.data.questions]
    forms = {"data.calibration.form": params.data.calibration.form, "data.recovery.form": params.data.recovery.form}
    sets += [key for key, form in forms.items() if form == "questions"]
    if not record["sees"] and sets:
        raise UsageError(
            f"{sets[0]} asks about images, but {record['source']} is a {record['model_type']}, which does not see: leave it out, or give a "
            "model that does (llava, llava_next, qwen2_5_vl)"
        )
    if record["sees"] and params.data.calibration.form != "questions":
        logger.warning("%s sees, but is %s: set data.calibration.form=questions", record["source"], BLIND)
        return BLIND
    return None


def answer_questions(inputs: Inputs, model: Artifact) -> dict[str, Artifact]:
    """The artifact `answers` of a model for every set of questions."""
    if inputs.questions is None:
        return {}
    given = inputs.params.evaluation
    return {
        each.name: answer(
            inputs.store,
            model,
            inputs.questions,
            section=f"questions.{each.name}",
            batch_size=given.batch_size,
            max_new_tokens=given.answer_tokens,
            device=inputs.device,
        )
        for each in inputs.params.data.questions
    }
