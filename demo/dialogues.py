"""What the vision-language model is trained on: images with several questions each, as token ids and the mask of what is learned.

One row holds the tokens of an image once and several turns about it, so that an image costs little per answer. A share of the rows
comes from easy-VQA where its train part is given; its images are mirrored half of the time, for its questions know no sides.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import LlavaProcessor

from demo import scenes, vlm
from demo.scenes import CAPTION, TYPES, Example, Pair, Scene
from demo.tower import pixels

SHARE = 0.25
"""Rows from easy-VQA where it is given."""

CAPTIONS = 0.3
"""Dialogues over drawn scenes that open with a caption."""

Dialogue = tuple[Image.Image, list[Pair]]


@dataclass
class Source:
    """Endless dialogues over drawn scenes of the train split and, where given, over easy-VQA's train part."""

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
        """`rows` dialogues of at most `turns` turns, over drawn scenes of at most `most` things."""
        return [self._one(turns, most) for _ in range(rows)]

    def _one(self, turns: int, most: int) -> Dialogue:
        if self.grouped and self.random.random() < SHARE:
            group = self.random.choice(self.grouped)
            image = group[0].image if self.random.random() < 0.5 else ImageOps.mirror(group[0].image)
            chosen = self.random.sample(group, min(turns, len(group)))
            return image, [(each.question, each.answer) for each in chosen]
        scene = next(each for each in self.drawn if len(each) <= most)
        return scenes.draw(scene, self.random), _turns(scene, turns, self.random)


def encode(
    reader: LlavaProcessor, dialogues: Sequence[Dialogue], length: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (b, n) padded on the right, the mask of answers with their `</s>` (b, n), and pixels (b, 3, 64, 64).

    Rows are as long as the longest, or cut and padded to `length`.

    The text is that of the chat template. The mask is the template's own (`return_assistant_tokens_mask`), found faster: an answer is
    what stands between a line break and the next `</s>`.
    """
    tokenizer = reader.tokenizer
    texts = [reader.apply_chat_template(vlm.conversation(turns, image), tokenize=False) for image, turns in dialogues]
    patches = vlm.IMAGE * (scenes.SIZE // vlm.PATCH) ** 2
    encoded = tokenizer([text.replace(vlm.IMAGE, patches) for text in texts], add_special_tokens=False)["input_ids"]
    size = length or max(map(len, encoded))
    ids = torch.tensor([(each + [tokenizer.pad_token_id] * size)[:size] for each in encoded])
    starts = (ids == tokenizer.convert_tokens_to_ids("Ċ")).cumsum(1)
    ends = (ids == tokenizer.eos_token_id).cumsum(1)
    before = torch.nn.functional.pad(starts - ends, (1, 0))[:, :-1]
    return ids, before > 0, pixels([image for image, _ in dialogues])


def _turns(scene: Scene, count: int, random: Random) -> list[Pair]:
    """Types in random order; in a share of the dialogues a caption comes first."""
    kinds = [kind for _ in range(0, count, len(TYPES)) for kind in random.sample(TYPES, len(TYPES))][:count]
    if count > 1 and random.random() < CAPTIONS:
        kinds[0] = CAPTION
    found = [_balanced(scene, kind, random) for kind in kinds]
    return [pair for pair in found if pair] or scenes.questions(scene, CAPTION, random)[0]


def _balanced(scene: Scene, kind: str, random: Random) -> Pair | None:
    """The answer first, then a question with it, as in `scenes.examples`."""
    groups = scenes.questions(scene, kind, random)
    answers = sorted({answer for group in groups for _, answer in group})
    return scenes.pick(groups, random, random.choice(answers)) if answers else None
