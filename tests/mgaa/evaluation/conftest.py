"""Questions about images that the tests of answers and scores share."""

import pytest

from mgaa.inputs.prompts import Question
from tests.support.seeing import picture

TEXTS = ["w1 w2", "w3", "w1 w2", "w4 w5 w6", "w7", "w8 w9", "w2 w1"]
ANSWERS = ["w3 w4", "w3", "w5", "w9 w8 w7", "w1", "w2 w2", "w6"]
SHAPES = [(16, 16), (24, 16), (16, 16), (16, 24), (24, 16), (16, 16), (16, 16)]


@pytest.fixture
def questions() -> list[Question]:
    """Of several lengths, with images of several shapes; the last but one has none."""
    shown = [
        Question(text, given, picture(seed, *shape))
        for seed, (text, given, shape) in enumerate(zip(TEXTS, ANSWERS, SHAPES, strict=True))
    ]
    shown[5] = Question(TEXTS[5], ANSWERS[5])
    return shown
