"""What the models of transformers are called with."""

from collections.abc import Mapping

from torch import Tensor

Inputs = Mapping[str, Tensor]
"""What a model is called with, by name: `input_ids`, and what the processor makes of images."""

IDS = "input_ids"
