"""The step of a sweep, measure: perplexity of one compressed model that is never written, window by window.

The factors are sliced out of the spectra in memory and put beside the tensors of the backbone, which all models of a process
share (of a backbone that stays in its files, the compressed model is written to a folder of its own for as long as it is measured); they
are those that `factorize` writes, so the numbers are those of the checkpoint that `flows.compress` would leave, up to the rounding of
kernels, which may depend on the number of threads. The losses of all windows are kept, because models are compared on the same windows
(tasks/evaluation/bootstrap.py). Models that see are asked questions about images as well."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from tasks.artifacts.files import (
    MEASUREMENT,
    RANKS,
    backbone_matrices,
    block_file,
    read_table,
    token_stream,
    write_table,
)
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import temporary_folder
from tasks.cache.step import step
from tasks.data.questions import CAPTION, questions_of, records_of
from tasks.evaluation.protocol import protocol
from tasks.steps.factorize import slice_factors
from tasks.steps.load_backbone import backbone_model


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
    length: int,
    stride: int | None,
    batch_size: int,
    sets: Sequence[str] = (),
    answer_tokens: int = 16,
    device: str,
) -> dict[str, Any]:
    """Measure the backbone at `ranks`, or dense where there are none; the manifest tells the seconds of the evaluation alone.

    Args:
        spectra: of all blocks; empty for the dense model.
        questions: about images, of which the `sets` are asked as well, all together; with at most `answer_tokens` to an answer.
        length, stride: of the windows, in tokens (`mgaa.evaluation.perplexity`).
    """
    from mgaa.evaluation.perplexity import perplexity

    ids, card = token_stream(store, tokens)
    with model_at_ranks(store, backbone, spectra, ranks, device, scratch=out.parent) as model:
        began = time.perf_counter()
        result = perplexity(model, ids, length=length, stride=stride, batch_size=batch_size)
        seconds = time.perf_counter() - began
        record = {
            "perplexity": result.perplexity,
            "nll": result.nll,
            "nll_stderr": result.standard_error,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "bytes": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
            "card": protocol(result, card, model.dtype),
            "losses": result.losses,
            "counts": result.counts,
        }
        if questions is not None and sets:
            _, processor = backbone_model(store, backbone, device)
            record |= ask_questions(
                model, processor, store, questions, sets, batch_size=batch_size, max_new_tokens=answer_tokens
            )
    write_table(out / MEASUREMENT, record)
    return {"evaluation_seconds": seconds}


def ask_questions(
    model: Any, processor: Any, store: Store, questions: Artifact, sets: Sequence[str], **given: int
) -> dict[str, Any]:
    """The share of the questions of all sets that a model answers, and which, by one."""
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


@contextmanager
def model_at_ranks(
    store: Store, backbone: Artifact, spectra: Sequence[Artifact], ranks: Artifact | None, device: str, *, scratch: Path
) -> Iterator[Any]:
    """The backbone with the factors of all blocks at `ranks`, or as it is; what the process shares stays as it is.

    Args:
        scratch: a folder on a disk that has room for a compressed model.
    """
    from mgaa.blocks.offload import is_offloaded
    from mgaa.checkpoints.save import apply_factors, fill_blockwise, load, twin_of
    from mgaa.models.architectures import decoder_blocks

    model, processor = backbone_model(store, backbone, device)
    if ranks is None:
        yield twin_of(model)
        return
    outcome, twin = read_table(store, ranks, RANKS), twin_of(model)
    inside = {
        block: [*group] for block, group in groupby(backbone_matrices(store, backbone), key=lambda matrix: matrix.block)
    }

    def change(block: int) -> None:
        place = store.folder(spectra[block]) / block_file(block)
        apply_factors(twin, slice_factors(twin, inside[block], outcome, place, device))

    if not is_offloaded(twin):
        for block in inside:
            change(block)
        yield twin
        return
    with temporary_folder(scratch) as folder:
        for block in range(len(decoder_blocks(twin)), len(inside)):
            change(block)  # of a vision tower or a projector, which are in memory
        fill_blockwise(twin, processor, folder / "model", change=change)
        yield load(folder / "model", device=str(device), stream=True)[0]
