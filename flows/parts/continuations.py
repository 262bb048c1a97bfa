"""The part of `flows.compress` that samples continuations of evaluation texts, for the report."""

from collections.abc import Mapping

from flows.parts.inputs import Inputs
from tasks.artifacts.backbone import backbone_tokenizer
from tasks.artifacts.models import weight_bytes
from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import should_stream
from tasks.config.parameters import Parameters
from tasks.data.chats import render_question
from tasks.planning.recipes import UNIFORM
from tasks.results.publish import DENSE, UNRECOVERED
from tasks.steps.generate import generate

SHOWN = (DENSE, UNIFORM, UNRECOVERED)
"""Models that are shown besides the method of the run."""


def check_chats(params: Parameters, store: Store, backbone: Artifact) -> None:
    """Render the questions of `evaluation.samples.chats`, so that what the chat template refuses ends a run before it starts.

    Raises:
        UsageError: the tokenizer has no chat template.
        InputError: the template refuses a question.
    """
    if chats := params.evaluation.samples.chats:
        _, tokenizer = backbone_tokenizer(store, backbone)
        for text in chats:
            render_question(text, tokenizer)


def sample_continuations(inputs: Inputs, models: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The artifact `samples` of the dense model, of the uniform one and of the run's method.

    Without prompts of the user's own, none for a vision-language model that is asked questions, whose answers show as much; and none where
    the blocks of the dense model stay in their files, because every token would read all of them.

    Args:
        models: the backbone and the checkpoints by name, that of the method last.
    """
    params, store, device = inputs.params, inputs.store, inputs.device
    given = params.evaluation.samples
    nothing = given.number == 0 or params.data.questions or should_stream(device, weight_bytes(store, models[DENSE]))
    if nothing and not (given.prompts or given.chats):
        return {}
    wanted = [name for name in models if name in SHOWN or name == [*models][-1]]
    return {name: generate(store, models[name], inputs.texts, **given.model_dump(), device=device) for name in wanted}
