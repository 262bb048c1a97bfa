"""Tables of perplexities, each with its protocol: two numbers are comparable only where their protocols are equal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mgaa.evaluation.perplexity import Perplexity


def perplexity_table(
    result: "Perplexity", tokens: Mapping[str, Any], model: "PreTrainedModel", *, size: int
) -> dict[str, Any]:
    """A measurement as JSON: the numbers, the loss of every window, and the protocol as `card`.

    Args:
        tokens: the card of the artifact `tokens`.
        size: bytes of the model.
    """
    return {
        "perplexity": result.perplexity,
        "nll": result.nll,
        "nll_stderr": result.standard_error,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": size,
        "card": protocol(result, tokens, model.dtype),
        "losses": result.losses,
        "counts": result.counts,
    }


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
        **({"protocol": tokens["protocol"]} if "protocol" in tokens else {}),
        "dtype": str(dtype).removeprefix("torch."),
        "non_finite": result.non_finite,
    }
