"""How a perplexity was measured, so that two numbers are compared only where this is equal: a part of every evaluation card."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgaa.evaluation.perplexity import Perplexity


def protocol(result: "Perplexity", tokens: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Windows, texts and dtype of a measurement.

    Args:
        tokens: the card of the artifact `tokens`.
        dtype: of the model.
    """
    return {
        "context_length": result.length,
        "stride": result.stride,
        "tokens": result.tokens,
        "windows": result.windows,
        "data_digest": tokens["data_digest"],
        "token_digest": tokens["token_digest"],
        "documents": tokens["documents"],
        "unknown_tokens": tokens["unknown"],
        "bos_rule": tokens["bos_rule"],
        "dtype": str(dtype).removeprefix("torch."),
        "non_finite": result.non_finite,
    }
