"""Compression of the test split without a language model: xz and the order-5 byte model, in bits per byte.

xz is measured twice: on the test text alone, and as the size that it adds to the compressed training text (xz then knows what the backbone
was trained on; its dictionary of 64 MB holds all of it). A zero byte ends every document, as `<s>` does for the backbone; bits are divided
by the text's bytes alone, the same divisor for all.
"""

import lzma
from collections.abc import Sequence

from demo import byte_model
from demo.corpus import Document

STRONGEST = 9 | lzma.PRESET_EXTREME


def bits_per_byte(train: Sequence[Document], test: Sequence[Document]) -> dict[str, float]:
    """Map the name of each yardstick to its bits per byte of the test split."""
    known, text, size = _joined(train), _joined(test), size_of(test)
    alone = len(lzma.compress(text, preset=STRONGEST))
    added = len(lzma.compress(known + text, preset=STRONGEST)) - len(lzma.compress(known, preset=STRONGEST))
    return {
        "xz_9e_test_alone": 8 * alone / size,
        "xz_9e_after_train": 8 * added / size,
        "byte_model_order_5": byte_model.fit(known).bits(text) / size,
    }


def size_of(documents: Sequence[Document]) -> int:
    """Bytes of text."""
    return sum(len(document.text.encode()) for document in documents)


def _joined(documents: Sequence[Document]) -> bytes:
    return b"".join(document.text.encode() + b"\0" for document in documents)
