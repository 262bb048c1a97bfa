"""Architecture of the demo vision-language model: LLaVA with a small CLIP vision tower, a two-layer projector and the demo language model.

Nothing of it is our own: it is `LlavaForConditionalGeneration` with `LlavaProcessor`, as for any checkpoint of that family (Liu et al.
2023), so that programs for such checkpoints can read this one. An image is 64 x 64, its 16 patches are 16 tokens. The projector reads the
tower's last layer, since the tower is trained here and no layer after it would be wasted.

The chat template is short, because every token is expensive for a small model: `<s>`, the image if there is one, the question and a line
break; the answer ends with `</s>`. It marks answers with `generation`, so that a processor returns the mask of what is learned.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from demo.corpus import RECORD
from demo.scenes import SIZE

BACKBONE = RECORD.parent
PATCH = 16
IMAGE, PAD = "<image>", "<pad>"

_NAMES = ("circle", "rectangle", "triangle", "diamond", "black", "blue", "brown", "gray", "green", "teal", "yellow")
_WHOLE = (*_NAMES, "top", "middle", "bottom", "centre", "yes")
WORDS = (*(mark + word for word in _WHOLE for mark in ("", " ")), " ring")
"""Words of the scenes that the tokenizer of docstrings would split (`b`, `l`, `ue`), as tokens of their own, with and without a blank: a
model finds and copies tokens, and pieces that many names share are hard to tell apart. `ring` is a token already, and part of `string`.
"""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endgeneration %}"
    "{% else %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}{{ '\\n' }}"
    "{% endif %}{% endfor %}"
)
"""Jinja; the line break after the question is the generation prompt, so nothing is added for one."""


def vision() -> CLIPVisionConfig:
    """Configuration of the tower: 4 blocks of 128 channels; 0.9 million parameters."""
    return CLIPVisionConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
    )


def tokenizer(backbone: Path = BACKBONE) -> PreTrainedTokenizerFast:
    """Tokenizer of the language model with `WORDS`, for plain text, since a docstring may contain the letters `<image>`."""
    extended = AutoTokenizer.from_pretrained(backbone)
    extended.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    return extended


def processor(backbone: Path = BACKBONE) -> LlavaProcessor:
    """Processor: the tokenizer of the language model with `<image>` and `<pad>`, the image processor on Pillow, and the chat template."""
    extended = tokenizer(backbone)
    extended.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    extended.add_special_tokens({"pad_token": PAD})
    extended.padding_side = "left"
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=extended,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build(reader: LlavaProcessor, backbone: Path = BACKBONE) -> LlavaForConditionalGeneration:
    """Build the model in float32: random tower and projector, the language model's own weights, and a few more rows of embeddings."""
    language = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    language.resize_token_embeddings(len(reader.tokenizer))
    text = language.config
    text.pad_token_id = reader.tokenizer.pad_token_id
    text.name_or_path = ""  # a local path does not belong in a published config
    config = LlavaConfig(
        vision_config=vision(),
        text_config=text,
        image_token_index=reader.image_token_id,
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    return model


def conversation(turns: Iterable[tuple[str, str | None]], image: Image.Image | None) -> list[dict[str, Any]]:
    """Messages in transformers' form: the image before the first question; an answer that is None is left to the model."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        shown = [] if image is None or messages else [{"type": "image", "image": image}]
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


@torch.no_grad()
def answer(
    model: LlavaForConditionalGeneration,
    reader: LlavaProcessor,
    asked: Sequence[tuple[Image.Image | None, str]],
    *,
    batch: int = 64,
    longest: int = 12,
) -> list[str]:
    """Answer each question on its own, greedily, `batch` at a time; either all have an image or none has."""
    found: list[str] = []
    for start in range(0, len(asked), batch):
        messages = [conversation([(question, None)], image) for image, question in asked[start : start + batch]]
        inputs = reader.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        ).to(model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        ids = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        found += reader.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found
