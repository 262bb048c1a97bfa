"""The hook of the tests (tests/support/shapes.py) checks the shapes of the library, under every name that they have."""

import re
from pathlib import Path

import jaxtyping
import pytest
import torch

from mgaa.budget import kept_energy
from mgaa.decomposition.linalg import Metric
from tests.support.shapes import SHAPED

FILES = sorted((Path(__file__).resolve().parents[2] / "mgaa").rglob("*.py"))


def test_a_wrong_shape_is_an_error_of_a_function_and_of_a_class() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        kept_energy(torch.ones(2, 2))
    with pytest.raises(jaxtyping.TypeCheckError):
        Metric(torch.ones(2, 2, 2, dtype=torch.float64), side="input", scale=1.0)


def test_every_name_for_a_shape_is_known_to_the_hook() -> None:
    texts = [path.read_text() for path in FILES]
    words = {
        word
        for text in texts
        for line in re.findall(r"^from jaxtyping import (.*)$", text, re.M)
        for word in line.split(", ")
    }
    aliases = {
        name for text in texts for name in re.findall(r"^(\w+)(?:: TypeAlias)? = .*\b(?:Float|Int|Bool)\[", text, re.M)
    }
    assert len(words) >= 3
    assert len(aliases) >= 4
    assert words | aliases <= SHAPED
