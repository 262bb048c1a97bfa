"""Training data of the vision-language model: images with several questions each, as token ids and the mask of what is learned.

One row holds the tokens of an image once and several turns about it, which do not see each other: otherwise the model would learn from
an earlier answer instead of from the image. So an image costs little per answer, and every answer is learned in the situation in which it
will be asked. If easy-VQA's train part is given, a share of the rows comes from it; its images are mirrored half of the time, since its
questions do not mention sides.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from demo import scenes, vlm
from demo.scenes import CAPTION, TYPES, Example, Pair, Scene
from demo.tower import pixels

SHARE = 0.25
"""Share of the rows from easy-VQA, if it is given."""

CAPTIONS = 0.3
"""Share of the dialogues over drawn scenes that begin with a caption."""

Dialogue = tuple[Image.Image, list[Pair]]


@dataclass
class Source:
    """Endless dialogues over drawn scenes of the train split and, if given, over easy-VQA's train part."""

    random: Random
    easy: Sequence[Example] = ()
    drawn: Iterator[Scene] = field(init=False)
    grouped: list[list[Example]] = field(init=False)

    def __post_init__(self) -> None:
        self.drawn = scenes.scenes("train", self.random)
        groups: dict[int, list[Example]] = defaultdict(list)
        for each in self.easy:
            groups[id(each.image)].append(each)
        self.grouped = list(groups.values())

    def take(self, rows: int, turns: int, most: int = scenes.MOST) -> list[Dialogue]:
        """Draw `rows` dialogues of at most `turns` turns, over scenes of at most `most` things."""
        return [self._one(turns, most) for _ in range(rows)]

    def _one(self, turns: int, most: int) -> Dialogue:
        if self.grouped and self.random.random() < SHARE:
            group = self.random.choice(self.grouped)
            image = group[0].image if self.random.random() < 0.5 else ImageOps.mirror(group[0].image)
            chosen = self.random.sample(group, min(turns, len(group)))
            return image, [(each.question, each.answer) for each in chosen]
        scene = next(each for each in self.drawn if len(each) <= most)
        return scenes.draw(scene, self.random), _turns(scene, turns, self.random)


@dataclass(frozen=True)
class Rows:
    """Dialogues in the form of the model's input, padded on the right (b, n).

    Attributes:
        ids: tokens.
        learned: whether a token is of an answer or its `</s>`.
        visible: which tokens a token sees (b, 1, n, n): those before it of the image and of its own turn.
        positions: of the image's tokens; each turn starts anew after them.
        images: pixels (b, 3, 64, 64).
    """

    ids: Tensor
    learned: Tensor
    visible: Tensor
    positions: Tensor
    images: Tensor


def encode(reader: LlavaProcessor, dialogues: Sequence[Dialogue]) -> Rows:
    """Encode dialogues; every turn is read as if it alone followed its image, in the text of the chat template, so that an image costs
    once.
    """
    tokenizer = reader.tokenizer
    shown = _ids(tokenizer, [f"{tokenizer.bos_token}{vlm.IMAGE * (scenes.SIZE // vlm.PATCH) ** 2}"])[0]
    rows = [[_turn(tokenizer, pair) for pair in turns] for _, turns in dialogues]
    size = len(shown) + max(sum(len(ids) for ids, _ in row) for row in rows)
    ids = torch.full((len(rows), size), tokenizer.pad_token_id)
    turn, positions, learned = (torch.zeros(len(rows), size, dtype=torch.int64) for _ in range(3))
    for index, row in enumerate(rows):
        ids[index, : len(shown)] = torch.tensor(shown)
        positions[index, : len(shown)] = torch.arange(len(shown))
        end = len(shown)
        for number, (own, answer) in enumerate(row, start=1):
            here = slice(end, end + len(own))
            ids[index, here], turn[index, here] = torch.tensor(own), number
            positions[index, here] = torch.arange(len(shown), len(shown) + len(own))
            end += len(own)
            learned[index, end - answer : end] = 1
        turn[index, end:] = len(row) + 1  # padding attends to itself, and nothing attends to it
    same = (turn[:, :, None] == turn[:, None, :]) | (turn[:, None, :] == 0)
    visible = same & torch.ones(size, size, dtype=torch.bool).tril()
    return Rows(ids, learned.bool(), visible[:, None], positions, pixels([image for image, _ in dialogues]))


def loss(model: LlavaForConditionalGeneration, rows: Rows) -> Tensor:
    """Mean negative log-likelihood in nats of what is learned; the head is computed for that alone."""
    hidden = model.model(
        input_ids=rows.ids,
        pixel_values=rows.images,
        attention_mask=rows.visible,
        position_ids=rows.positions,
        use_cache=False,
    )[0]
    wanted = rows.learned[:, 1:]
    return cross_entropy(model.lm_head(hidden[:, :-1][wanted]), rows.ids[:, 1:][wanted])


def _turn(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> tuple[list[int], int]:
    """Tokens of a turn, and the number of them at its end that are the answer."""
    question, answer = _ids(tokenizer, [f"{pair[0]}\n", f"{pair[1]}{tokenizer.eos_token}"])
    return question + answer, len(answer)


def _ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


def _turns(scene: Scene, count: int, random: Random) -> list[Pair]:
    """Draw types in random order; in a share of the dialogues a caption comes first."""
    kinds = [kind for _ in range(0, count, len(TYPES)) for kind in random.sample(TYPES, len(TYPES))][:count]
    if count > 1 and random.random() < CAPTIONS:
        kinds[0] = CAPTION
    found = [_balance(scene, kind, random) for kind in kinds]
    return [pair for pair in found if pair] or scenes.questions(scene, CAPTION, random)[0]


def _balance(scene: Scene, kind: str, random: Random) -> Pair | None:
    """Draw the answer first, then a question with it, as in `scenes.examples`."""
    groups = scenes.questions(scene, kind, random)
    answers = sorted({answer for group in groups for _, answer in group})
    return scenes.pick(groups, random, random.choice(answers)) if answers else None
