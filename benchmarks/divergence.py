"""Cost of keeping the dense model's predictions, and the part of the divergence that each way of keeping them misses.

    python benchmarks/divergence.py NAME=MODEL:TEXT [NAME=MODEL:TEXT ...]

The reverse divergence sum_v p(v) log(p(v) / q(v)) of a compressed model p from the dense model q needs q at every token of the validation
windows. Compared, on 20 windows of 256 tokens and 5 random allocations at compression 0.2 (one share per type, `pooled`): all logits in the
model's dtype; the input of the head, from which they are computed again; the k largest probabilities with the mass of the rest, which gives
a lower bound (Cover and Thomas, Elements of Information Theory, 2.7: the log sum inequality). `missed` is the mean over allocations of the
share of the divergence that is lost, `order` the rank correlation of the allocations by what is left; seconds are those of one trial's
divergence.
"""

import sys
import time
from itertools import combinations

import torch
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from benchmarks.ablations import LENGTH, texts
from mgaa.checkpoints.save import twin_of
from mgaa.decomposed import decompose_model
from mgaa.inputs.tokens import pack, windows
from mgaa.levels import Target
from mgaa.models.architectures import matrices_of
from mgaa.models.fused import unfuse_
from mgaa.search import reference, space_of
from mgaa.search.objective import logits_of
from mgaa.search.optimizer import draw_point
from mgaa.statistics.calibration import CalibrationSettings

WINDOWS, ALLOCATIONS, COMPRESSION, BATCH = 20, 5, 0.2, 10
KEPT = (16, 64, 256)


def models(source: str, text: str) -> tuple[PreTrainedModel, list[PreTrainedModel], Tensor]:
    """The dense model, compressed ones, and windows."""
    model, tokenizer = mgaa.load(source, device="cpu")
    matrices = matrices_of(unfuse_(model))
    calibration, evaluation = texts(text)
    cut = {"samples": 128}
    shared = decompose_model(
        model,
        windows(pack(calibration, tokenizer).ids, LENGTH, **cut),
        matrices,
        Target(COMPRESSION),
        CalibrationSettings(),
        ("pooled", {}),
    )
    space = space_of(matrices, compression=COMPRESSION)
    twins = []
    for number in range(ALLOCATIONS):
        twins.append(twin_of(model))
        shared.put_(twins[-1], space.allocate(shared.ladders, draw_point(0, number, len(space)))[1])
    return model, twins, windows(pack(evaluation, tokenizer).ids, LENGTH, samples=WINDOWS)


@torch.inference_mode()
def exact(model: PreTrainedModel, ids: Tensor, hidden: Tensor) -> float:
    """Divergence over all windows, from logits that are recomputed."""
    total = 0.0
    for rows, kept in zip(ids.split(BATCH), hidden.split(BATCH), strict=True):
        ours = model(input_ids=rows).logits.float().log_softmax(-1)
        total += float((ours.exp() * (ours - logits_of(model, kept).float().log_softmax(-1))).sum())
    return total


@torch.inference_mode()
def bounded(model: PreTrainedModel, ids: Tensor, top: Tensor, places: Tensor) -> float:
    """Divergence over all windows, from the k largest probabilities and the mass of the rest."""
    total = 0.0
    for rows, theirs, where in zip(ids.split(BATCH), top.split(BATCH), places.split(BATCH), strict=True):
        ours = model(input_ids=rows).logits.float().softmax(-1).gather(-1, where.long())
        rest, dense = (1 - ours.sum(-1)).clamp(min=1e-12), (1 - theirs.float().sum(-1)).clamp(min=1e-12)
        total += float((ours * (ours / theirs.float()).log()).sum() + (rest * (rest / dense).log()).sum())
    return total


@torch.inference_mode()
def top_of(model: PreTrainedModel, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest probabilities of the dense model, float32, and their indices, int32."""
    found = [model(input_ids=rows).logits.float().softmax(-1).topk(k) for rows in ids.split(BATCH)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices.int() for each in found])


def order(first: list[float], second: list[float]) -> float:
    """Kendall's rank correlation."""
    pairs = [(a - b) * (c - d) for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)]
    return sum(1 if product > 0 else -1 for product in pairs) / len(pairs)


def main() -> None:
    """Read the command line, run, print."""
    print("| backbone | what is kept | bytes per token | missed | order | seconds |\n|---|---|---|---|---|---|")
    for given in sys.argv[1:]:
        name, place = given.split("=", 1)
        model, twins, ids = models(*place.rsplit(":", 1))
        hidden, vocabulary = (
            reference(twin_of(model), ids, batch_size=BATCH),
            model.get_input_embeddings().num_embeddings,
        )
        began = time.perf_counter()
        wanted = [exact(twin, ids, hidden) for twin in twins]
        seconds = (time.perf_counter() - began) / len(twins)
        size = hidden.element_size()
        print(f"| {name} | all logits | {vocabulary * size:,} | 0 | 1 | |")
        print(f"| {name} | input of the head | {hidden.shape[2] * size:,} | 0 | 1 | {seconds:.2f} |", flush=True)
        for k in (k for k in KEPT if k < vocabulary):
            top, places = top_of(model, ids, k)
            began = time.perf_counter()
            found = [bounded(twin, ids, top, places) for twin in twins]
            seconds = (time.perf_counter() - began) / len(twins)
            missed = sum(1 - a / b for a, b in zip(found, wanted, strict=True)) / len(wanted)
            print(
                f"| {name} | top {k} and the rest | {8 * k:,} | {missed:.1%} | {order(found, wanted):.2f} | {seconds:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
