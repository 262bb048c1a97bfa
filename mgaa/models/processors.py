"""Conversion of a user's inputs into a model's: the tokenizer of a language model, the processor of a vision-language model.

A processor is a tokenizer, an image processor and a chat template. Images are prepared by Pillow: torchvision, which transformers prefers
where it is installed, has no build for every torch. Where it is missing, the video settings of a processor are not loaded, and are copied
with the model unchanged: nothing here uses them.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

Processor: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin

_VIDEOS = "video_processor"
_VIDEO_FILE = "video_preprocessor_config.json"


def load_processor(folder: Path, config: PreTrainedConfig) -> ProcessorMixin:
    """Load the processor of a vision-language model."""
    kind: type[ProcessorMixin] = getattr(transformers, PROCESSOR_MAPPING_NAMES[config.model_type])
    if _VIDEOS in kind.get_attributes() and find_spec("torchvision") is None:
        kind = _without_videos(kind, _of_videos(folder))
    processor: ProcessorMixin = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return processor


def tokenizer_of(processor: Processor) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a processor, or the tokenizer itself."""
    tokenizer: PreTrainedTokenizerBase = getattr(processor, "tokenizer", processor)
    return tokenizer


def _without_videos(kind: type[ProcessorMixin], unread: dict[str, str]) -> type[ProcessorMixin]:
    """Derive a processor of images alone, of the same name, because files contain it."""

    class Images(kind):  # type: ignore[misc, valid-type]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != _VIDEOS]

        def save_pretrained(self, folder: Any, *positional: Any, **named: Any) -> Any:
            written = super().save_pretrained(folder, *positional, **named)
            for name, text in unread.items():
                Path(folder, name).write_text(text, encoding="utf-8")
            return written

    Images.__name__ = kind.__name__
    return Images


def _of_videos(folder: Path) -> dict[str, str]:
    """Return the file with the video settings, by name; some versions of transformers store them with the images, or with everything."""
    for name in (_VIDEO_FILE, "preprocessor_config.json"):
        if (folder / name).is_file():
            return {name: (folder / name).read_text(encoding="utf-8")}
    path = folder / "processor_config.json"
    nested = json.loads(path.read_text(encoding="utf-8")).get(_VIDEOS) if path.is_file() else None
    return {} if nested is None else {_VIDEO_FILE: json.dumps(nested, indent=2, sort_keys=True) + "\n"}
