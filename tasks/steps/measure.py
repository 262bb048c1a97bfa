"""The step of a sweep, measure: perplexity of one compressed model that is never written, window by window.

The factors are sliced out of the spectra in memory and join the tensors of the backbone, which all models of a process
share (of a backbone that stays in its files, the compressed model is written to a folder of its own for as long as it is measured); they
are those that `factorize` writes, so the numbers are those of the checkpoint that `flows.compress` would leave, up to the rounding of
kernels, which may depend on the number of threads. The losses of all windows are kept, because models are compared on the same windows
(tasks/evaluation/bootstrap.py). Models that see are asked questions about images as well."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks.artifacts.backbone import backbone_model
from tasks.artifacts.factors import model_at_ranks
from tasks.artifacts.files import (
    MEASUREMENT,
    token_stream,
    write_table,
)
from tasks.artifacts.specs import QuestionSpec, WindowSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step
from tasks.data.questions import CAPTION, questions_of, records_of
from tasks.evaluation.protocol import perplexity_table


@step(kind="measurement")
def measure(
    out: Path,
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    spectra: Sequence[Artifact],
    ranks: Artifact | None,
    questions: Artifact | None = None,
    *,
    windows: WindowSpec,
    asked: QuestionSpec | None = None,
    device: str,
) -> dict[str, Any]:
    """Measure the backbone at `ranks`, or dense where there are none; the manifest tells the seconds of the evaluation alone.

    Args:
        spectra: of all blocks; empty for the dense model.
        questions: about images, of which the sets of `asked` are asked as well, all together.
    """
    from mgaa.evaluation.perplexity import perplexity

    ids, card = token_stream(store, tokens)
    with model_at_ranks(store, backbone, spectra, ranks, device, scratch=out.parent) as model:
        began = time.perf_counter()
        result = perplexity(model, ids, **asdict(windows))
        seconds = time.perf_counter() - began
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        record = perplexity_table(result, card, model, size=size)
        if questions is not None and asked is not None and asked.sets:
            _, processor = backbone_model(store, backbone, device)
            given = {"batch_size": windows.batch_size, "max_new_tokens": asked.answer_tokens}
            record |= ask_questions(model, processor, store, questions, asked.sets, **given)
    write_table(out / MEASUREMENT, record)
    return {"evaluation_seconds": seconds}


def ask_questions(
    model: Any, processor: Any, store: Store, questions: Artifact, sets: Sequence[str], **given: int
) -> dict[str, Any]:
    """The share of the questions of all sets that a model answers correctly, and which."""
    from mgaa.evaluation.answering import answer
    from mgaa.evaluation.scoring import is_match

    pairs = [
        (record, question)
        for name in sets
        for record, question in zip(
            records_of(store, questions, f"questions.{name}"),
            questions_of(store, questions, f"questions.{name}"),
            strict=True,
        )
        if record["type"] != CAPTION
    ]
    said = answer(model, processor, [question for _, question in pairs], **given)
    right = [is_match(each, record["answer"]) for each, (record, _) in zip(said, pairs, strict=True)]
    return {"accuracy": sum(right) / len(right), "correct": right} if right else {}
