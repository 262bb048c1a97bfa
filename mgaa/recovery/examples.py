"""Examples on which a compressed model is trained: token ids of different lengths, and the tokens that are scored.

Instructions come in the format of Alpaca (Taori et al. 2023), as LoRAP uses them: a prompt made of `instruction` and `input`, and the
answer `output`, by default the only part that is scored (so in LLM-Pruner's code, from which LoRAP's recovery comes: `train_on_inputs` is
off). Plain text is cut into windows (`mgaa.inputs.tokens.windows`), all of which is scored. A vision-language model is trained on questions
about images (`mgaa.inputs.prompts`), of which the answers are scored.

The boundary: prompt and prompt with answer are tokenized separately; their common prefix is the prompt, so a token that spans the boundary
counts as answer. The beginning mark comes first if the tokenizer has one; the end mark comes last, where it fits (our choice).

The first token of an example has no context and is never scored. Padding follows the end of shorter examples, where it is invisible to
every scored position of a causal model.

Legend: t tokens of all examples, e1 examples plus one, n windows, l tokens of a window, b examples of a batch.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from mgaa.errors import InputError, ResourceError, UsageError
from mgaa.inputs.prompts import Prompts
from mgaa.inputs.tokens import digest
from mgaa.models.model_inputs import IDS, Inputs

UNSCORED = -100
"""Label of a token that is not scored, torch's `ignore_index`."""

FIELDS = ("instruction", "input", "output")

_OPENING = "Below is an instruction that describes a task"
_TASK = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
_BATCH = 512
"""Rows per call of the tokenizer: enough to use its threads, few enough to show progress."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Concatenated examples: example i is `[starts[i], starts[i + 1])`.

    Attributes:
        ids: token ids.
        labels: the id of each scored token, `UNSCORED` for the others.
        starts: where the examples begin, and the end of the last.
        dropped: number of rows of the source that had no token to score.
        images: the model's other inputs for each example, if there are any.
    """

    ids: Int[Tensor, " t"]
    labels: Int[Tensor, " t"]
    starts: Int[Tensor, " e1"]
    dropped: int = 0
    images: tuple[Inputs, ...] = ()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one example, with its parts named as transformers' models expect."""
        begin, end = self.starts[index : index + 2].tolist()
        images = self.images[index] if self.images else {}
        return {"input_ids": self.ids[begin:end], "labels": self.labels[begin:end], **images}

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return int((self.labels != UNSCORED).sum())

    @property
    def longest(self) -> int:
        """Number of tokens of the longest example."""
        return int(self.starts.diff().max())

    @property
    def digest(self) -> str:
        """Identity of the examples, independent of their file."""
        parts = [digest(part) for part in (self.ids, self.labels, self.starts)]
        parts += [
            f"{name}{tuple(tensor.shape)}{hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()}"
            for each in self.images
            for name, tensor in sorted(each.items())
        ]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the same bytes for the same examples.

        Raises:
            ResourceError: the file cannot be written.
        """
        tensors = {"ids": self.ids, "labels": self.labels, "starts": self.starts}
        tensors |= {
            f"{index}/{name}": tensor for index, images in enumerate(self.images) for name, tensor in images.items()
        }
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"dropped": str(self.dropped)}
            )
        except (OSError, SafetensorError) as error:
            raise ResourceError(
                f"the examples cannot be written to {path} ({error}): make room or give another path"
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> "Examples":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, damaged or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("ids", "labels", "starts")}
                stored = {name: file.get_tensor(name) for name in file.keys() if "/" in name}  # noqa: SIM118 (not a mapping)
                dropped = int((file.metadata() or {})["dropped"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path} holds no examples of mgaa ({error}): prepare them again") from error
        images: list[dict[str, Tensor]] = [{} for _ in range(len(tensors["starts"]) - 1)] if stored else []
        for name, tensor in stored.items():
            index, _, key = name.partition("/")
            images[int(index)][key] = tensor
        return cls(**tensors, dropped=dropped, images=tuple(images))


def from_windows(windows: Int[Tensor, "n l"]) -> Examples:
    """Turn every window into an example that is scored from its second token on.

    Raises:
        InputError: there are no windows, or windows of a single token.
    """
    number, length = windows.shape
    if number < 1 or length < 2:
        raise InputError(
            f"There are {number} windows of {length} tokens, expected at least one of at least two: give more text."
        )
    ids = windows.to(torch.int64)
    labels = torch.cat([torch.full_like(ids[:, :1], UNSCORED), ids[:, 1:]], dim=1)
    return Examples(ids.flatten(), labels.flatten(), torch.arange(number + 1) * length)


def from_instructions(
    rows: Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 256,
    scored: str = "answer",
) -> Examples:
    """Turn instructions into examples of at most `length` tokens (module docstring).

    Args:
        rows: with the fields `instruction`, `input` (may be empty) and `output`.
        tokenizer: of the model.
        length: tokens kept of a row (256 in LoRAP's code).
        scored: `answer` for only the answers, or `all` for the prompts as well.

    Raises:
        UsageError: the length is below two, or `scored` is unknown.
        InputError: a row lacks a field, or no row has an answer within `length` tokens.
    """
    if length < 2 or scored not in ("answer", "all"):
        raise UsageError(f"length is {length} and scored {scored!r}: expected at least 2, and 'answer' or 'all'.")
    for number, row in enumerate(rows, start=1):
        check_row(row, f"row {number}")
    encoded = [example for example in _encode_rows(rows, tokenizer, length) if example[1] < len(example[0])]
    if not encoded:
        raise InputError(
            f"None of the {len(rows)} rows has an answer within its first {length} tokens: "
            "raise the length, or give rows with an `output`."
        )
    ids = [torch.tensor(tokens) for tokens, _ in encoded]
    labels = [each.clone() for each in ids]
    for label, (_, prompt) in zip(labels, encoded, strict=True):
        label[: max(1, prompt if scored == "answer" else 1)] = UNSCORED
    starts = torch.tensor([0, *(len(each) for each in ids)]).cumsum(0)
    return Examples(torch.cat(ids), torch.cat(labels), starts, dropped=len(rows) - len(encoded))


def from_prompts(prompts: Prompts) -> Examples:
    """Turn questions about images into examples whose answers are scored.

    Raises:
        InputError: no prompt has an answer.
    """
    questions = Prompts.of(prompts)
    if not any(questions.answers):
        raise InputError(
            f"None of the {len(questions)} prompts has an answer, expected some: give questions with answers."
        )
    ids = [tokens[IDS][0] for tokens in questions.sequences]
    labels = [tokens.clone() for tokens in ids]
    for label, answer in zip(labels, questions.answers, strict=True):
        label[: max(1, len(label) - answer)] = UNSCORED
    images = tuple({name: tensor for name, tensor in inputs.items() if name != IDS} for inputs in questions.sequences)
    starts = torch.tensor([0, *(len(tokens) for tokens in ids)]).cumsum(0)
    return Examples(torch.cat(ids), torch.cat(labels), starts, images=images if any(images) else ())


def prompt_of(row: Mapping[str, str]) -> str:
    """Return the prompt of Alpaca, with and without an input (https://github.com/tatsu-lab/stanford_alpaca)."""
    if row["input"]:
        context = ", paired with an input that provides further context. "
        return f"{_OPENING}{context}{_TASK}{row['instruction']}\n\n### Input:\n{row['input']}\n\n### Response:\n"
    return f"{_OPENING}. {_TASK}{row['instruction']}\n\n### Response:\n"


def read_instructions(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a file in the format of Alpaca: `.json` (one list), or `.jsonl` or `.ndjson` (one object per line).

    Raises:
        InputError: the file is missing or not JSON, or a row is not an object with the three texts.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        rows = _lines(text) if path.suffix.lower() in (".jsonl", ".ndjson") else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({error}): give a file on this machine with a list of objects, or one object per line in "
            "a file that ends in .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise InputError(f"{path} holds a {type(rows).__name__}, expected a list of objects with {', '.join(FIELDS)}")
    for number, row in enumerate(rows, start=1):
        check_row(row, f"row {number} of {path}")
    return [{field: row[field] for field in FIELDS} for row in rows]


def _lines(text: str) -> list[Any]:
    """Parse every line as JSON; only a newline ends a line, other separators may occur inside a string."""
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from error
    return rows


def collate(examples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Collate one batch: shorter examples are padded with zeros, which are neither attended to nor scored; images are concatenated."""
    longest = max(len(example["input_ids"]) for example in examples)
    shape = (len(examples), longest)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, UNSCORED, dtype=torch.int64),
    }
    for index, example in enumerate(examples):
        length = len(example["input_ids"])
        batch["input_ids"][index, :length] = example["input_ids"]
        batch["attention_mask"][index, :length] = 1
        batch["labels"][index, :length] = example["labels"]
    names = dict.fromkeys(name for example in examples for name in example if name not in batch)
    return batch | {name: torch.cat([_pad(each, name, longest) for each in examples if name in each]) for name in names}


def _pad(example: Mapping[str, Tensor], name: str, longest: int) -> Tensor:
    """Return an input besides the tokens; one with a value per token is padded with zeros."""
    tensor, length = example[name], len(example["input_ids"])
    of_tokens = tensor.shape == (1, length)
    return functional.pad(tensor, (0, longest - length)) if of_tokens else tensor


def check_row(row: object, where: str) -> None:
    """Refuse a row that is not in the format of Alpaca.

    Raises:
        InputError: it lacks one of the three texts; `where` describes its place, for the message.
    """
    if not isinstance(row, Mapping) or not all(isinstance(row.get(field), str) for field in FIELDS):
        content = {key: type(value).__name__ for key, value in row.items()} if isinstance(row, Mapping) else row
        raise InputError(
            f"{where} holds {content!r}, expected the texts {', '.join(FIELDS)} (`input` may be empty): "
            "correct the row or leave it out"
        )


def _encode_rows(
    rows: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterable[tuple[list[int], int]]:
    """Yield the tokens of each row and the number of them that form the prompt; all of them where the answer is empty."""
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    after = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for start in tqdm(range(0, len(rows), _BATCH), desc="tokenizing instructions", disable=None):
        part = rows[start : start + _BATCH]
        prompts = [prompt_of(row) for row in part]
        whole = _tokens(tokenizer, [prompt + row["output"] for prompt, row in zip(prompts, part, strict=True)])
        for row, prompt, tokens in zip(part, _tokens(tokenizer, prompts), whole, strict=True):
            common = _common_prefix(prompt, tokens) if row["output"].strip() else len(tokens) + len(after)
            yield (before + tokens + after)[:length], len(before) + common


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Encode without special tokens; truncation and padding that the tokenizer's file may request are off."""
    options: dict[str, Any] = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
    return [list(ids) for ids in tokenizer(texts, **options)["input_ids"]]


def _common_prefix(one: Sequence[int], two: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(two)))
