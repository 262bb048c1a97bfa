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

UNRECOVERED = "unrecovered"
"""The name of the method's model before its recovery."""


def recovered(
    p: Parameters,
    store: Store,
    backbone: Artifact,
    texts: Artifact,
    tokens: Mapping[str, Artifact],
    model: Compressed,
    measured: Mapping[str, Any],
) -> Compressed:
    """The model after its recovery, evaluated like all others.

    Args:
        texts, tokens: of the other sections: what is trained on must not overlap with the texts, and the validation tokens choose the
            best state.
        measured: arguments of `evaluate`.
    """
    given = p.data.recovery
    examples = make_examples(
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
    checkpoint = recover(
        store, model.checkpoint, examples, tokens["validation"], plan=p.recovery.plan, device=device(p)
    )
    ranks = collect_recovered(store, backbone, model.ranks, checkpoint)
    metrics = evaluate(store, checkpoint, **measured)
    return Compressed(
        model.ratios, ranks, model.factors, checkpoint, metrics, model.scores, [model.checkpoint, examples]
    )
