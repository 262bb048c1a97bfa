"""A vision-language model for read-only tests, random except for the first blocks of the demo language model, and questions for it."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mgaa.checkpoints.save import save
from tasks.cache.artifact import Artifact, Store
from tasks.steps.load_backbone import architecture_digest, identify, load_backbone
from tasks.steps.read_questions import questions_content, read_questions

BLOCKS = 3
"""Blocks of its decoder."""
ASKED = {"from": 0.0, "to": 1.0, "samples": None, "seed": 0, "split": None}
"""Settings that choose all questions of a file."""


@cache
def multimodal_model() -> Path:
    """Folder of the model, written once per session (seconds) in a folder that is deleted with the tests' home; do not modify it."""
    import torch

    from demo import vlm

    torch.manual_seed(0)
    processor = vlm.processor()
    model = vlm.build(processor)
    decoder = model.model.language_model
    decoder.layers, decoder.config.num_hidden_layers = decoder.layers[:BLOCKS], BLOCKS
    folder = Path(os.environ["PREFECT_HOME"]) / "seeing model"
    save(model.to(torch.bfloat16).eval(), processor, folder)
    return folder


def referred(store: Store, source: Path | None = None) -> Artifact:
    """Load the model, or another one, as the artifact `backbone`."""
    given: dict[str, Any] = {"source": str(source or multimodal_model()), "revision": None}
    return load_backbone.fn(
        store,
        **given,
        dtype="auto",
        files=identify(**given),
        architecture=architecture_digest(**given),
        parts=["decoder"],
    )


def reading(store: Store, sections: Mapping[str, Mapping[str, Any]]) -> Artifact:
    """Read these sections, as the artifact `questions`."""
    content = {name: questions_content(given["source"]) for name, given in sections.items()}
    return read_questions.fn(
        store, sections={name: {**ASKED, **given} for name, given in sections.items()}, content=content
    )


def scenes(samples: int | None, split: str = "test", seed: int = 0) -> dict[str, Any]:
    """Settings that choose so many questions about drawn scenes."""
    return {"source": "scenes", "split": split, "samples": samples, "seed": seed}


def written(folder: Path, lines: Sequence[Mapping[str, Any]], pictures: Mapping[str, Any]) -> dict[str, Any]:
    """Write a file of these lines and its images; returns the settings that choose its questions."""
    folder.mkdir()
    for name, image in pictures.items():
        (folder / name).parent.mkdir(exist_ok=True)
        image.save(folder / name)
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {"source": str(path)}


def kept(store: Store, kind: str) -> list[Path]:
    """Folders that are left of artifacts of a kind, complete or not."""
    return sorted(path for path in store.path.glob(f"{kind}/*") if path.is_dir())
