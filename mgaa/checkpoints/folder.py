"""Examination of a checkpoint folder before anything in it is opened as a model.

transformers is lenient where a compression run must not be: it falls back to pickles, fills missing tensors with random numbers, follows an
index wherever it points and attaches adapters that it finds. Here a folder is accepted only if it holds a readable config without code of
its own, a tokenizer, and complete safetensors files inside the folder; every refusal names the file and the remedy. Only headers are read,
so this costs milliseconds at any size, and no import of torch.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from safetensors import safe_open

from mgaa.boundary import translate_errors, via_proxy
from mgaa.checkpoints.companion_files import TEXTS, VOCABULARY_FILES, texts_of
from mgaa.errors import InputError, UsageError
from mgaa.models.mark import METHOD, NOTICE

_PARTS = ("text_config", "vision_config")
CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
TOKENIZER_FILES = (
    *VOCABULARIES,
    *("tokenizer_config.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
DEQUANTISED = (
    "; transformers makes one by AutoModelForCausalLM.from_pretrained(..., dtype='bfloat16', "
    "quantization_config=Mxfp4Config(dequantize=True)), and mgaa.save writes it"
)
"""Remedy for the weights of gpt_oss, which are published quantised."""
GGUF = ".gguf"
DEQUANTIZED = "dequantized.json"
"""Record of a folder that was converted from a GGUF file (`mgaa.checkpoints.gguf`)."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def locate(source: str | Path, revision: str | None = None) -> Path:
    """Locate the folder of a checkpoint: `source` itself, or the Hub's files of that id at that commit (fetched or cached).

    Raises:
        UsageError: a Hub id without a commit, a local folder with one, or a GGUF file, which has to be converted first.
        InputError: the folder does not exist, or the Hub does not provide it.
    """
    if (file := gguf_file(source, revision)) is not None:
        raise UsageError(
            f"{file} is a GGUF file, expected a Hugging Face folder: make one of it with mgaa.convert_gguf"
        )
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(
                f"revision {revision!r} for the local folder {source}: only Hub models have revisions; set it to null"
            )
        return folder
    if not _may_be_hub_id(source):
        raise InputError(f"no model folder at {source}: expected a folder with {CONFIG}; check the path")
    if revision is None or not _COMMIT.fullmatch(revision):
        raise UsageError(
            f"{source} is not a local folder, and as a Hub model it has the revision {revision!r}: expected a commit "
            "(40 hexadecimal digits, from the model's page, 'Files', 'History'), because branches move"
        )
    return _fetch(str(source), revision)


def gguf_file(source: str | Path, revision: str | None = None) -> Path | None:
    """Return the GGUF file that a source names, itself or the only one in a folder without a config; None where it names none.

    Raises:
        UsageError: the folder has several, or there is a revision.
        InputError: the file does not exist.
    """
    place = Path(source).expanduser()
    if place.is_dir() and not (place / CONFIG).exists():
        found = sorted(place.glob(f"*{GGUF}"))
    else:
        found = [place] if place.suffix == GGUF and not place.is_dir() else []
    if len(found) > 1:
        raise UsageError(
            f"{place} has {len(found)} GGUF files ({found[0].name}, {found[1].name}, ...): name one of them"
        )
    if not found:
        return None
    if not found[0].is_file():
        raise InputError(f"no GGUF file at {place}: check the path")
    if revision is not None:
        raise UsageError(
            f"revision {revision!r} for the local file {found[0]}: only Hub models have revisions; set it to null"
        )
    return found[0]


def backbone_files(source: str | Path, revision: str | None = None) -> list[Path]:
    """List the files that determine a checkpoint, sorted: config, tokenizer, weights and texts; examined, so complete.

    Of a GGUF file, only itself.
    """
    if (file := gguf_file(source, revision)) is not None:
        return [file]
    folder = locate(source, revision)
    examine(folder)
    small = [CONFIG, GENERATION, INDEX, DEQUANTIZED, *TOKENIZER_FILES, *PROCESSOR_FILES]
    present = [folder / name for name in small if (folder / name).is_file()]
    if (folder / WEIGHTS).is_file():
        present = [path for path in present if path.name != INDEX]
    return sorted({*present, *texts_of(folder), *weight_files(folder)})


def model_types(source: str | Path, revision: str | None = None) -> list[str]:
    """List every `model_type` in the config of a model: its own, and those of its text and vision parts; sorted.

    A part without a type has the one that transformers assumes.
    """
    folder = locate(source, revision)
    config = _json(folder, CONFIG)
    if any(part in config for part in _PARTS) and not all(_named(config.get(part)) for part in _PARTS):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder).to_dict()
    parts = (config, *(config[part] for part in _PARTS if _named(config.get(part))))
    return sorted({str(part.get("model_type")) for part in parts})


def _named(part: Any) -> bool:
    return isinstance(part, dict) and "model_type" in part


def examine(folder: Path) -> None:
    """Raise InputError, with the remedy, at the first reason not to load a folder."""
    examine_config(folder)
    examine_tokenizer(folder)
    for path in weight_files(folder):
        _examine_header(path)


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that transformers would read, checked to exist inside the folder."""
    return [_inside(folder, name) for name in _weight_names(folder)]


def examine_config(folder: Path) -> None:
    """Raise InputError, with the remedy, for a config that is missing, damaged, quantised, or asks for code of its own."""
    config = _json(folder, CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{folder / CONFIG} has no model_type: it is not the config of a transformers model")
    if "auto_map" in config:
        raise InputError(
            f"{folder / CONFIG} requires custom code (auto_map), which is never run: "
            "use a model whose class is part of transformers"
        )
    if (kernel := next(_kernels(config), None)) is not None:
        raise InputError(
            f"{folder / CONFIG} requests a compiled kernel of the Hub ({kernel!r} as attn_implementation), which is never fetched nor run: "
            "set it to sdpa or eager"
        )
    quantization = config.get("quantization_config") or {"quant_method": METHOD}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method != METHOD:
        way = DEQUANTISED if method == "mxfp4" else ""
        raise InputError(
            f"{folder} is quantised ({method}): start from the unquantised model, quantise afterwards{way}"
        )
    if config.get("transformers_weights", NOTICE) != NOTICE:
        raise InputError(
            f"{folder / CONFIG} keeps its weights in {config['transformers_weights']}: rename them to {WEIGHTS} "
            "and remove transformers_weights"
        )
    if (folder / GENERATION).exists():
        _json(folder, GENERATION)
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} holds an adapter: merge it into the model first (peft: merge_and_unload)")


def _kernels(config: dict[str, Any]) -> Iterator[str]:
    """Yield the repositories that a config, or one nested in it, names as its implementation of attention."""
    parts = [config]
    while parts:
        for key, value in parts.pop().items():
            if isinstance(value, dict):
                parts.append(value)
            elif key.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
                yield value


def examine_tokenizer(folder: Path) -> None:
    """Raise InputError, with the remedy, for a folder without a tokenizer, or with one that asks for code of its own."""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise InputError(f"{folder} has no tokenizer ({', '.join(VOCABULARIES)}): copy the model's own there")
    for name in ("tokenizer.json", "tokenizer_config.json", *PROCESSOR_FILES):
        if (folder / name).exists() and "auto_map" in _json(folder, name):
            raise InputError(
                f"{folder / name} requires custom code (auto_map), which is never run: "
                "use a tokenizer and a processor whose classes are part of transformers"
            )


def _examine_header(path: Path) -> None:
    """Open a file, which checks that its header is sound and that its size is the one in the header."""
    remedy = "fetch it again (a Git LFS pointer needs `git lfs pull`)"
    with (
        translate_errors(f"{path} is not a complete safetensors file", remedy),
        safe_open(path, framework="np") as tensors,
    ):
        tensors.keys()


def _weight_names(folder: Path) -> list[str]:
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    if not (folder / INDEX).exists():
        raise InputError(f"{folder} has neither {WEIGHTS} nor {INDEX}: {_instead(folder)}")
    index = _json(folder, INDEX)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{folder / INDEX} has no weight_map from tensors to files: fetch it again")
    if not isinstance(index.get("metadata"), dict):
        raise InputError(f"{folder / INDEX} has no metadata: fetch it again")
    return sorted(set(names.values()))


def _instead(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return (
            f"{pickles[0]} is a pickle, which can run code when it is opened; convert it to safetensors "
            "where that does no harm (`save_pretrained` of transformers writes them)"
        )
    return "expected safetensors weights; fetch them"


def _inside(folder: Path, name: str) -> Path:
    """Return the file of that name, which no link may take out of the folder (of a Hub snapshot: out of its cache entry)."""
    root = folder.resolve()
    root = root.parents[1] if root.parent.name == "snapshots" else root
    path = folder / name
    try:
        inside, there = path.resolve().is_relative_to(root), path.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise InputError(f"{folder} takes its weights from {name[:80]!r} ({error}): fetch {INDEX} again") from error
    if not inside:
        raise InputError(f"{folder} takes its weights from {name!r}, outside the folder: copy the file into it")
    if not there:
        raise InputError(f"{folder} lacks the file {name}: fetch it")
    return path


def _json(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise InputError(f"{folder} has no {name}: expected the folder of a transformers model; check the path")
    with translate_errors(f"{folder / name} is not valid JSON", "fetch it again"):
        value = json.loads(_inside(folder, name).read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise InputError(f"{folder / name} holds a {type(value).__name__}, expected an object: fetch it again")
    return value


def _may_be_hub_id(source: str | Path) -> bool:
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
        return False
    return "/" not in source or not Path(source).parent.is_dir()


def _fetch(name: str, revision: str) -> Path:
    """Fetch small files first, so that a model that will be refused costs no gigabytes."""
    texts = (*VOCABULARY_FILES, *(f"*{suffix}" for suffix in TEXTS), "LICEN*", "NOTICE*", "COPYING*")
    folder = _snapshot(name, revision, [CONFIG, GENERATION, INDEX, *TOKENIZER_FILES, *PROCESSOR_FILES, *texts])
    examine_config(folder)
    examine_tokenizer(folder)
    return _snapshot(name, revision, list(_files_to_fetch(folder)))


def _files_to_fetch(folder: Path) -> Iterator[str]:
    yield WEIGHTS
    if (folder / INDEX).exists():
        yield from _weight_names(folder)


def _snapshot(name: str, revision: str, files: list[str]) -> Path:
    remedy = "check both, log in if it is gated, unset HF_HUB_OFFLINE if it is not in the cache, or give a local folder"
    with translate_errors(f"the Hub does not provide {name} at {revision}{via_proxy(constants.ENDPOINT)}", remedy):
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
