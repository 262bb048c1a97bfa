"""Token ids in the forms in which users have them, as whole numbers in rows of their own length, without padding.

A tensor or an array, lists of ids, a tokenizer's output, the rows of a data set, batches of a loader: all of them are rows. Padding is
removed by the attention mask that comes with it, so a padded batch counts as its sequences would one by one; a mask with holes, which no
sequence has, is refused. Ids that are not whole numbers, and texts, are refused. (Readers of `mgaa.inputs.readers`.)

Legend: s sequences, t tokens of a sequence; n windows, l tokens of a window; k tokens without padding.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.errors import InputError, UsageError
from mgaa.inputs.prompts import Prompts
from mgaa.inputs.tokens import Stream, check_vocabulary
from mgaa.models.model_inputs import IDS

Tokens: TypeAlias = Prompts | Int[Tensor, "s t"] | Mapping[str, Any] | Sequence[Any]
"""Sequences: a tensor or an array (sequences, length); lists of ids, of any lengths; a tokenizer's output, or a list of these; prompts."""

Windows: TypeAlias = Int[Tensor, "n l"] | Mapping[str, Any] | Sequence[Any]
"""Sequences of equal length, in the same forms."""

Ids: TypeAlias = Stream | Int[Tensor, " t"] | Mapping[str, Any] | Sequence[Any]
"""One sequence, in the same forms, or a stream (`mgaa.inputs.tokens.pack`)."""

MASK = "attention_mask"
_BESIDE = frozenset(
    ("token_type_ids", "special_tokens_mask", "offset_mapping", "overflow_to_sample_mapping", "overflowing_tokens")
) | {"num_truncated_tokens", "length", "text", "labels"}
"""Keys that accompany ids and are not needed here."""


def sequences(name: str, value: Any) -> Prompts | Int[Tensor, "s t"]:
    """Read sequences: as one tensor where all have equal length, otherwise as prompts.

    Raises:
        UsageError: it is a text or anything else but tokens.
        InputError: they are not whole numbers, not in rows, empty, or masked with holes.
    """
    if isinstance(value, Prompts):
        return value
    ndim = _ndim(value)
    if ndim == 1:
        raise InputError(
            f"{name} are one row, expected rows: (sequences, length); mgaa.inputs.tokens.windows(ids, length) "
            "cuts a long row, and ids[None] is "
            "one sequence"
        )
    rows = list(_rows(name, value))
    lengths = [len(row) for row in rows]
    if not all(lengths) or not lengths:
        empty = f"no token in row {lengths.index(0)}" if any(lengths) else "no tokens"
        raise InputError(f"{name} have {empty}, expected sequences with at least one: give more text")
    if len(set(lengths)) > 1:
        return Prompts(tuple({IDS: row[None].cpu()} for row in rows), (0,) * len(rows))
    return value.long() if isinstance(value, Tensor) else torch.stack([row.cpu() for row in rows])


def windows(name: str, value: Any) -> Int[Tensor, "n l"]:
    """Read sequences of equal length.

    Raises:
        UsageError, InputError: as `sequences`, or their lengths differ.
    """
    rows = sequences(name, value)
    if isinstance(rows, Tensor):
        return rows
    raise InputError(
        f"{name} have {rows.lengths[:3]}... tokens, expected rows of one length (mgaa.inputs.tokens.windows)"
    )


def stream(name: str, value: Any) -> Int[Tensor, " t"]:
    """Read one sequence.

    Raises:
        UsageError, InputError: as `sequences`, or there are several.
    """
    if isinstance(value, Stream):
        return value.ids
    rows = list(_rows(name, value))
    if len(rows) > 1:
        raise InputError(
            f"{name} has {len(rows)} rows, expected one: lay windows of one text end to end, ids.flatten(), and texts by "
            "mgaa.inputs.tokens.pack"
        )
    return rows[0] if rows else torch.empty(0, dtype=torch.int64)


def lists(name: str, value: Any) -> list[list[int]]:
    """Read sequences of any lengths, as lists.

    Raises:
        UsageError, InputError: as `sequences`; an empty row is left to the function.
    """
    if isinstance(value, Sequence) and not isinstance(value, str) and not value:
        return []
    return [row.tolist() for row in _rows(name, value)]


def check_fit(tokens: Prompts | Int[Tensor, "s t"], model: PreTrainedModel) -> None:
    """Refuse sequences that do not fit a model.

    Raises:
        InputError: an id is outside the vocabulary, a sequence is longer than the model's positions, or there is none.
    """
    prompts = Prompts.of(tokens)
    check_vocabulary(prompts.ids(), model.get_input_embeddings().num_embeddings)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and max(prompts.lengths) > positions:
        raise InputError(
            f"the longest calibration sequence has {max(prompts.lengths)} tokens, expected at most {positions} (the model's positions): "
            "give shorter ones"
        )


def _ndim(value: Any) -> int | None:
    """Return 1 for a bare row, the dimensions of a tensor or array, `None` for a container of rows."""
    if isinstance(value, Stream):
        return 1
    dimensions = getattr(value, "ndim", None)
    if isinstance(dimensions, int):
        return dimensions
    flat = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0 and all(map(_is_id, value))
    return 1 if flat else None


def _rows(name: str, value: Any) -> Iterator[Int[Tensor, " t"]]:
    """Yield the rows in anything that holds token ids."""
    if isinstance(value, str | bytes):
        raise UsageError(
            f"{name} are text ({value[:40]!r}), expected token ids: tokenise it first, tokenizer(texts)['input_ids']"
        )
    if isinstance(value, Mapping):
        yield from _drop_padding(name, value)
    elif isinstance(value, Tensor) or hasattr(value, "__array__"):
        yield from _of_tensor(name, value)
    elif isinstance(value, Iterable):
        yield from _of_items(name, list(value))
    else:
        raise UsageError(f"{name} hold {value!r:.60}, expected token ids: whole numbers in rows, (sequences, length)")


def _of_items(name: str, items: list[Any]) -> Iterator[Int[Tensor, " t"]]:
    """Yield a row of ids, or the rows in each item."""
    if all(map(_is_id, items)):
        yield torch.tensor([int(item) for item in items], dtype=torch.int64)
    else:
        for item in items:
            yield from _rows(name, item)


def _is_id(value: Any) -> bool:
    whole = isinstance(value, Tensor) and value.ndim == 0 and not value.is_floating_point()
    return whole or (isinstance(value, Integral) and not isinstance(value, bool))


def _of_tensor(name: str, value: Any) -> Iterator[Int[Tensor, " t"]]:
    try:
        ids = value if isinstance(value, Tensor) else torch.as_tensor(value.__array__())
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} are not an array of whole numbers ({error}): give token ids") from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"{name} are in {ids.dtype}, expected token ids: whole numbers, as a tokenizer gives them")
    if ids.is_meta or ids.ndim not in (1, 2):
        where = "on the meta device" if ids.is_meta else f"of shape {tuple(ids.shape)}"
        raise InputError(f"{name} are {where}, expected token ids in rows, (sequences, length)")
    yield from ids.long().unbind() if ids.ndim == 2 else (ids.long(),)


def _drop_padding(name: str, output: Mapping[str, Any]) -> Iterator[Int[Tensor, " t"]]:
    """Yield the rows of a tokenizer's output, without its padding."""
    if IDS not in output:
        raise UsageError(
            f"{name} have the keys {', '.join(map(str, output))}, expected {IDS}: give a tokenizer's output"
        )
    if further := sorted(set(map(str, output)) - _BESIDE - {IDS, MASK}):
        raise UsageError(
            f"{name} come with {', '.join(further)}, which would be left out: give {IDS} and {MASK} alone; questions about images become "
            "prompts by mgaa.encode"
        )
    rows, mask = list(_rows(name, output[IDS])), output.get(MASK)
    if mask is None:
        yield from rows
        return
    whole = mask.long() if isinstance(mask, Tensor) else mask
    masks = list(_rows(f"{MASK} of {name}", whole))
    if [*map(len, rows)] != [*map(len, masks)]:
        raise InputError(f"{MASK} of {name} differs in shape from {IDS}: give both as one call of the tokenizer does")
    for index, (row, kept) in enumerate(zip(rows, masks, strict=True)):
        yield _unpadded(name, index, row, kept)


def _unpadded(name: str, index: int, row: Int[Tensor, " t"], mask: Int[Tensor, " t"]) -> Int[Tensor, " k"]:
    """Return the tokens of a row without padding, which is allowed at both ends only."""
    there = (mask != 0).nonzero().flatten()
    if len(there) and int(there[-1]) - int(there[0]) + 1 != len(there):
        raise InputError(
            f"{MASK} of {name} leaves tokens out in the middle of row {index}, expected padding at the ends alone: give such parts as rows"
        )
    return row[mask.to(row.device) != 0]
