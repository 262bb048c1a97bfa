"""The part of `flows.compress` that lets models go on with evaluation texts, for the report."""

from collections.abc import Mapping

from tasks.artifacts.models import weight_bytes
from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import Where, streams
from tasks.config.parameters import Parameters
from tasks.planning.recipes import EVEN
from tasks.results.publish import DENSE, UNRECOVERED
from tasks.steps.generate import generate

SHOWN = (DENSE, EVEN, UNRECOVERED)
"""Models that are shown beside the run's method."""


def samples_of(
    p: Parameters, store: Store, texts: Artifact, models: Mapping[str, Artifact], where: Where
) -> dict[str, Artifact]:
    """The artifact `samples` of the dense model, of the uniform one and of the run's method.

    None for a model that sees and is asked questions, whose answers show as much; none where the blocks of the dense model stay in
    their files, because every token would read all of them.

    Args:
        models: the backbone and the checkpoints by name, that of the method last.
    """
    given = p.evaluation.samples
    if given.number == 0 or p.data.questions or streams(where, weight_bytes(store, models[DENSE])):
        return {}
    wanted = [name for name in models if name in SHOWN or name == [*models][-1]]
    return {name: generate(store, models[name], texts, **given.model_dump(), device=where) for name in wanted}
