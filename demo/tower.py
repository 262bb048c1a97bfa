"""First stage of the vision-language training: vision tower and projector learn what is in the cell under each patch.

Three auxiliary linear heads on every patch predict the cell that holds the patch's centre, and the shape and the colour in it, or none.
That is far cheaper than learning to see through a language model (no text, 17 tokens an image, many labels in each). At the same time
the projector learns to express it in the language model's own words: its output approaches the sum of the embeddings of the words for
shape, colour and place. The words of a question then match similar patches, and an answer is copied from there, which the
attention of a trained language model can do already; without this stage, the model answered from the question alone for hundreds of steps.
"""

from collections.abc import Iterator, Sequence
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import CLIPVisionModel, PreTrainedTokenizerFast

from demo import scenes
from demo.scenes import COLOURS, GRID, PLACES, SHAPES, SIZE, Scene

EMPTY = 0.3
"""Weight of an empty cell in the loss; most cells are empty."""


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """Convert images of 64 x 64 RGB to (b, 3, 64, 64) between -1 and 1, like the image processor but without its slower general code."""
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return stacked.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def labels(drawn: Sequence[Scene], patch: int) -> list[Tensor]:
    """Cell of every patch, its shape and its colour, as indices (b, patches); the index after the last one means an empty cell."""
    shapes = torch.full((len(drawn), GRID * GRID), len(SHAPES))
    colours = torch.full((len(drawn), GRID * GRID), len(COLOURS))
    for row, scene in enumerate(drawn):
        for thing in scene:
            shapes[row, thing.cell] = SHAPES.index(thing.shape)
            colours[row, thing.cell] = list(COLOURS).index(thing.colour)
    lines = [int((place + 0.5) * patch * GRID / SIZE) for place in range(SIZE // patch)]
    cells = torch.tensor([line * GRID + column for line in lines for column in lines])
    return [cells.expand(len(drawn), -1), shapes[:, cells], colours[:, cells]]


def word_embeddings(embeddings: Tensor, tokenizer: PreTrainedTokenizerFast) -> list[Tensor]:
    """Mean embedding of each name's tokens, with and without a blank, for places, shapes and colours (each with a word for none)."""
    names = [[*PLACES, "empty"], [*SHAPES, "empty"], [*COLOURS, "empty"]]
    return [torch.stack([_word(each, embeddings, tokenizer) for each in group]) for group in names]


def fit(
    tower: CLIPVisionModel,
    projector: nn.Module,
    vocabulary: Sequence[Tensor],
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
) -> list[list[float]]:
    """Train both in place; `vocabulary` is that of `word_embeddings`.

    Returns the curve: step, loss, and the share of patches over a thing whose shape and colour are correct.
    """
    heads = nn.ModuleList(nn.Linear(tower.config.hidden_size, len(names) + 1) for names in (PLACES, SHAPES, COLOURS))
    parameters = [*tower.parameters(), *projector.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    curve, recent = list[list[float]](), list[Tensor]()
    for step, (images, wanted) in enumerate(_batches(steps, batch, tower.config.patch_size, seed), start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 20 * step / steps, (1 - step / steps) / 0.95)
        hidden = tower(images, output_hidden_states=True).hidden_states[-1][:, 1:]
        value, *right = _loss([head(hidden) for head in heads], wanted)
        value = value + _distance(projector(hidden), vocabulary, wanted)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([each for each in parameters if each.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(torch.stack([value.detach(), *right]))
        if step % max(1, steps // 20) == 0:
            curve.append([step, *(round(each, 4) for each in torch.stack(recent).mean(0).tolist())])
            tqdm.write(
                f"tower, step {step}: loss {curve[-1][1]}, shapes {curve[-1][2]:.3f}, colours {curve[-1][3]:.3f}"
            )
            recent.clear()
    return curve


def _loss(scores: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
    """Loss, then for shapes and for colours the share of correct predictions where there is a thing."""
    total, right = torch.zeros(()), []
    for score, each in zip(scores, wanted, strict=True):
        empty = score.shape[-1] - 1
        weight = torch.ones(empty + 1)
        weight[empty] = EMPTY
        total = total + cross_entropy(score.flatten(0, 1), each.flatten(), weight=weight)
        right.append((score.argmax(-1) == each)[each < empty].float().mean())
    return [total, *right[1:]]


def _distance(projected: Tensor, vocabulary: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Squared distance to the sum of the words, as a fraction of its squared norm."""
    target = torch.stack([rows[each] for rows, each in zip(vocabulary, wanted, strict=True)]).sum(0)
    return (projected - target).square().mean() / target.square().mean()


def _word(name: str, embeddings: Tensor, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    ids = tokenizer([name, f" {name}"], add_special_tokens=False)["input_ids"]
    return torch.stack([embeddings[each].mean(0) for each in ids]).mean(0)


def _batches(steps: int, batch: int, patch: int, seed: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
    random = Random(f"tower {seed}")
    endless = scenes.scenes("train", random)
    for _ in tqdm(range(steps), desc="training the vision tower", disable=None):
        drawn = [next(endless) for _ in range(batch)]
        yield pixels([scenes.draw(scene, random) for scene in drawn]), labels(drawn, patch)
