"""Processors for the tiny vision-language models (`tiny("llava")`...): 57 words, images of 16 x 16 pixels, no files, no network."""

from collections.abc import Sequence

import numpy
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PixtralImageProcessorPil,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3VLProcessor,
)

from mgaa.models.processors import _without_videos

SPECIAL = {"<video>": 57, "<vs>": 58, "<ve>": 59, "<unk>": 60, "<s>": 61, "</s>": 62, "<image>": 63}
"""Ids that the configs of the tiny models name; the words come before them."""
WORDS = tuple(f"w{i}" for i in range(57))

_SQUARE = {"height": 16, "width": 16}
_TEMPLATE = """{% for turn in messages %}{% if turn.role == 'user' %}<s>{% endif %}\
{% for part in turn.content %}{% if part.type == 'image' %}IMAGE{% else %} {{ part.text }}{% endif %}{% endfor %}\
{% if turn.role == 'assistant' %}</s>{% endif %}{% endfor %}"""


QWEN = {"qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}


def processor(family: str, vocabulary: Sequence[str] = WORDS) -> ProcessorMixin:
    """Processor of `tiny(family)`: 16 image tokens in llava, 4 in gemma3, as many as the shape of an image requires in the others.

    The processor of mistral3 needs torchvision; LLaVA's with the same image processor gives the same, except for marks between the rows.
    """
    words = tokenizer(vocabulary)
    mark = "<vs>" if family == "gemma3" else "<vs><image><ve>" if family in QWEN else "<image>"
    template = _TEMPLATE.replace("IMAGE", mark)
    if family in QWEN:
        images = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=8 * 8, max_pixels=32 * 32
        )
        kind = _without_videos(QWEN[family], {})
        return kind(image_processor=images, tokenizer=words, chat_template=template)
    if family == "gemma3":
        square = Gemma3ImageProcessorPil(size=_SQUARE)
        return Gemma3Processor(image_processor=square, tokenizer=words, chat_template=template, image_seq_length=4)
    if family == "mistral3":
        any_size = PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 8, "width": 8})
        merged = {"patch_size": 8, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
        return LlavaProcessor(image_processor=any_size, tokenizer=words, chat_template=template, **merged)
    clip = {"size": {"shortest_edge": 16}, "crop_size": _SQUARE}
    vision = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if family == "llava_next":
        several = LlavaNextImageProcessorPil(image_grid_pinpoints=[[16, 32], [32, 16]], **clip)
        return LlavaNextProcessor(image_processor=several, tokenizer=words, chat_template=template, **vision)
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**clip), tokenizer=words, chat_template=template, **vision
    )


def tokenizer(vocabulary: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Tokenizer of the words, each a token, and the special ones."""
    ids = {word: index for index, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids | SPECIAL, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={
            "image_token": "<image>",
            "video_token": "<video>",
            "boi_token": "<vs>",
            "eoi_token": "<ve>",
            "vision_start_token": "<vs>",
            "vision_end_token": "<ve>",
        },
    )


def picture(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    """Image of noise, the same for the same seed."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)
