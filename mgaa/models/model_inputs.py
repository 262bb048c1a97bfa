"""Inputs of the models of transformers."""

from collections.abc import Mapping

from torch import Tensor

Inputs = Mapping[str, Tensor]
"""Inputs of a model by name: `input_ids`, and the image inputs of the processor."""

IDS = "input_ids"
