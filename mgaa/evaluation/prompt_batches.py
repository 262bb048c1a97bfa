"""Batches of image questions for a model: prompts of one shape go through it together, so nothing is padded.

A result is that of the question alone, up to the rounding of kernels, which may depend on the size of the batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.errors import InputError, UsageError
from mgaa.inputs.prompts import Prompts, Question
from mgaa.models.model_inputs import Inputs

_AT_ONCE = 256
"""Number of questions whose images are held as pixels at once; batches are formed among them."""


def check_positive(**numbers: int) -> None:
    """Raise a `UsageError`, with its name, for a number below one."""
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"{name} is {number}, expected at least 1")


def chunks(questions: Sequence[Question], batch_size: int) -> Iterator[Sequence[Question]]:
    """Yield consecutive questions whose images are decoded and held together."""
    size = max(_AT_ONCE, batch_size)
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


def batches(prompts: Prompts, size: int) -> list[range]:
    """Group consecutive prompts of one shape, at most `size` together."""
    alike = prompts.split_by_shape([range(len(prompts))])
    return [group[start : start + size] for group in alike for start in range(0, len(group), size)]


@contextmanager
def image_token_errors(inputs: Inputs) -> Iterator[None]:
    """Turn whatever a model raises over the tokens of an image into an error with the remedy."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, IndexError) as error:
        if len(inputs) == 1:
            raise
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        raise InputError(
            f"the model does not take a prompt with {shapes} ({str(error).strip().partition(chr(10))[0]}): expected as many image tokens "
            "as its vision tower gives features; the processor's patch size, image size or vision_feature_select_strategy belong to "
            "another model"
        ) from error


def move_to_model(model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
    """Move inputs to the model's embedding; the blocks of a streamed model are elsewhere (`mgaa.blocks.offload`)."""
    device = model.get_input_embeddings().weight.device
    return {name: tensor.to(device) for name, tensor in inputs.items()}
