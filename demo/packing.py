"""Packing of documents into rows of token ids: every document preceded by `<s>`, all joined into one stream, cut without overlap.

Each row holds one token more than its length, the first token of the next row, so that every token of the stream except the first
is predicted exactly once.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo.corpus import Document


def encode(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> list[Tensor]:
    """Token ids of every document, preceded by `<s>`."""
    encoded = tokenizer([document.text for document in documents], add_special_tokens=False, verbose=False)["input_ids"]
    return [torch.tensor([tokenizer.bos_token_id, *ids]) for ids in encoded]


def rows(encoded: Sequence[Tensor], length: int) -> Tensor:
    """Rows of `length + 1` ids that overlap by one; an incomplete last row is left out."""
    stream = torch.cat(list(encoded))
    return stream[: (len(stream) - 1) // length * length + 1].unfold(0, length + 1, length)


def batches(encoded: Sequence[Tensor], *, batch: int, length: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of rows; documents and rows are reshuffled in every epoch, so that row borders move."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(encoded), generator=generator).tolist()
        epoch = rows([encoded[each] for each in order], length)
        shuffled = torch.randperm(len(epoch), generator=generator)
        yield from (epoch[chosen] for chosen in torch.split(shuffled, batch) if len(chosen) == batch)
