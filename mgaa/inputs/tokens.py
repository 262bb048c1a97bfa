"""Documents as a stream of token ids, and a stream as windows of equal length.

Documents are tokenized separately and concatenated ("packing"), so that padding never enters a statistic or a loss. Each document is
preceded by the beginning-of-sequence token if the tokenizer has one, otherwise followed by its end-of-sequence token; nothing else is
added. This is how language models are given documents in training. Published perplexities on WikiText-2, PTB and C4 are taken from a stream
of another kind (`join`): the rows of the data set joined by a separator and tokenized once, as one text, with the marks that the tokenizer
itself adds and no others. The rule is recorded in words with the numbers, because it changes them.

Legend: t tokens of a stream, n windows, l tokens of a window.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mgaa.boundary import translate_errors
from mgaa.errors import InputError, UsageError

_BATCH = 512
"""Documents per call of the tokenizer: enough to use its threads, few enough to show progress."""


@dataclass(frozen=True)
class Stream:
    """Packed documents, with the facts for their record."""

    ids: Int[Tensor, " t"]
    documents: int
    bytes: int
    """UTF-8 bytes of the documents, without marks."""
    unknown: int
    """Number of ids that are the tokenizer's unknown token: text that the model cannot distinguish."""
    rule: str
    """Placement of the marks, in words."""

    def __len__(self) -> int:
        return len(self.ids)


def pack(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, rule: str | None = None) -> Stream:
    """Tokenize `documents` and concatenate them.

    Args:
        rule: placement of the marks, in words, if they are in the documents already, as a chat template writes them; None for the marks of
            the tokenizer.

    Raises:
        InputError: there are no documents.
    """
    if not documents:
        raise InputError(
            "There are 0 documents to tokenize, expected at least 1: check the source, its split and its range."
        )
    before, after, rule = document_marks(tokenizer) if rule is None else ([], [], rule)
    parts: list[int] = []
    for start in tqdm(range(0, len(documents), _BATCH), desc="tokenizing documents", disable=None):
        batch = documents[start : start + _BATCH]
        failed = f"the tokenizer cannot encode the documents {start} to {start + len(batch) - 1}"
        with translate_errors(failed, "correct their text, or use the tokenizer that the model was trained with"):
            encodings = _encode(batch, tokenizer)
        for encoded in encodings:
            parts += before + encoded + after
    ids = torch.tensor(parts, dtype=torch.int64)
    unknown = tokenizer.unk_token_id
    return Stream(
        ids=ids,
        documents=len(documents),
        bytes=sum(len(document.encode()) for document in documents),
        unknown=0 if unknown is None or unknown in before + after else int((ids == unknown).sum()),
        rule=rule,
    )


def join(rows: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, separator: str) -> Stream:
    """Join rows as they are, blank ones included, and tokenize them once; the marks are those that the tokenizer adds by itself.

    The stream of GPTQ's evaluation and of those after it (IST-DASLab/gptq, AIoT-MLSys-Lab/SVD-LLM): `tokenizer(separator.join(rows))`.

    Raises:
        InputError: there are no rows, or the tokenizer cannot encode them.
    """
    if not rows:
        raise InputError("There are 0 rows to join, expected at least 1: check the source, its split and its range.")
    text = separator.join(rows)
    with translate_errors("the tokenizer cannot encode the joined rows", "use the tokenizer of the model"):
        (ids,), (marks,) = (_encode([each], tokenizer, own_marks=True) for each in (text, ""))
    stream, unknown = torch.tensor(ids, dtype=torch.int64), tokenizer.unk_token_id
    named = ", ".join(map(str, tokenizer.convert_ids_to_tokens(marks)))
    return Stream(
        ids=stream,
        documents=len(rows),
        bytes=len(text.encode()),
        unknown=0 if unknown is None or unknown in marks else int((stream == unknown).sum()),
        rule=f"{named} once, with the whole text, as the tokenizer itself adds" if marks else "no mark added",
    )


def windows(stream: Int[Tensor, " t"], length: int, *, samples: int | None = None, seed: int = 0) -> Int[Tensor, "n l"]:
    """Cut non-overlapping windows of `length` tokens; the incomplete last one is left out.

    `samples` of them are drawn without replacement by `seed` and kept in file order; None takes all.

    Raises:
        UsageError: a length or a number of samples below one.
        InputError: fewer whole windows than samples, or none.
    """
    if length < 1 or (samples is not None and samples < 1):
        raise UsageError(f"{samples} samples of {length} tokens were requested, expected at least one of at least one.")
    whole = stream[: len(stream) // length * length].reshape(-1, length)
    needed = 1 if samples is None else samples
    if len(whole) < needed:
        raise InputError(
            f"The text has {len(stream)} tokens, which fill {len(whole)} windows of {length} tokens, but {needed} are needed "
            f"({needed * length} tokens): give more text, or lower `samples` or `length`."
        )
    return whole[draw_indices(len(whole), samples, seed)]


def draw_indices(count: int, samples: int | None, seed: int) -> Int[Tensor, " n"]:
    """Draw indices of `samples` of `count` items without replacement by `seed`, in order; None takes all.

    Raises:
        InputError: there are fewer items.
    """
    if samples is None:
        return torch.arange(count)
    if samples > count:
        raise InputError(f"{samples} of {count} were requested: give more, or lower `samples`.")
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:samples].sort().values


def check_vocabulary(ids: Int[Tensor, "*shape"], vocabulary: int) -> None:
    """Refuse ids that a model with `vocabulary` embeddings does not have.

    Raises:
        InputError: an id is outside `[0, vocabulary)`.
    """
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary):
        raise InputError(
            f"Token ids run from {int(ids.min())} to {int(ids.max())}, but the model has {vocabulary} embeddings: "
            "use the tokenizer that belongs to the model."
        )


def positions_of(config: PreTrainedConfig) -> int | None:
    """Return the maximum length of a sequence by the config of a model; None where it sets no bound (XLNet has -1)."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if positions is not None and positions > 0 else None


def digest(ids: Int[Tensor, "*shape"]) -> str:
    """Return the identity of tokens: sha256 over shape and values, the same for every integer type and machine."""
    values = ids.cpu().contiguous().to(torch.int64).numpy().astype("<i8")
    return hashlib.sha256(f"{tuple(ids.shape)}".encode() + values.tobytes()).hexdigest()


def document_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], str]:
    """Return the ids before and after each document, and the rule in words."""
    if tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id], [], f"{tokenizer.bos_token} before each document"
    if tokenizer.eos_token_id is not None:
        return (
            [],
            [tokenizer.eos_token_id],
            f"{tokenizer.eos_token} after each document (the tokenizer has no beginning mark)",
        )
    return [], [], "no mark between documents (the tokenizer has neither a beginning nor an end mark)"


def _encode(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, own_marks: bool = False
) -> list[list[int]]:
    """Encode without any special token, or with the tokenizer's own; truncation and padding that its file may request are off."""
    encoded = tokenizer(
        list(documents),
        add_special_tokens=own_marks,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [list(ids) for ids in encoded["input_ids"]]
