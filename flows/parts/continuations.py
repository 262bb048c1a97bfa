"""The part of `flows.compress` that samples continuations of evaluation texts, for the report."""

from collections.abc import Mapping

from flows.parts.inputs import Inputs
from tasks.artifacts.models import weight_bytes
from tasks.cache.artifact import Artifact
from tasks.cache.placement import should_stream
from tasks.planning.recipes import UNIFORM
from tasks.results.publish import DENSE, UNRECOVERED
from tasks.steps.generate import generate

SHOWN = (DENSE, UNIFORM, UNRECOVERED)
"""Models that are shown besides the method of the run."""


def sample_continuations(inputs: Inputs, models: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The artifact `samples` of the dense model, of the uniform one and of the run's method.

    None for a vision-language model that is asked questions, whose answers show as much; none where the blocks of the dense model stay in
    their files, because every token would read all of them.

    Args:
        models: the backbone and the checkpoints by name, that of the method last.
    """
    given, store, device = inputs.params.evaluation.samples, inputs.store, inputs.device
    if given.number == 0 or inputs.params.data.questions or should_stream(device, weight_bytes(store, models[DENSE])):
        return {}
    wanted = [name for name in models if name in SHOWN or name == [*models][-1]]
    return {name: generate(store, models[name], inputs.texts, **given.model_dump(), device=device) for name in wanted}
