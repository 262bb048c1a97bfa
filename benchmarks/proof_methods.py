"""Methods that `benchmarks/proof.py` compares: ours, the earlier ones of this project, and the rules of `benchmarks/peers`.

A method measures a model once and returns a function that compresses it at any compression, so that what all compressions share is computed
once and still counted in the time of each.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from benchmarks.peers import asvd, lems, zs_svd
from benchmarks.peers.filling import Prepared
from mgaa.checkpoints.save import twin_of
from mgaa.search.compress import compress_by_search_

Method = Callable[[PreTrainedModel, Int[Tensor, "s t"], Int[Tensor, "n l"]], Prepared]
"""A function of the dense model, the calibration tokens and the validation tokens."""


def in_one_call(**settings: Any) -> Method:
    """Method that calls `mgaa.compress_` with these settings."""

    def prepare(model: PreTrainedModel, tokens: Tensor, _: Tensor) -> Prepared:
        def compressed(compression: float) -> PreTrainedModel:
            twin = twin_of(model)
            mgaa.compress_(twin, tokens, compression=compression, **settings)
            return twin

        return compressed

    return prepare


def by_search(model: PreTrainedModel, tokens: Int[Tensor, "s t"], validation: Int[Tensor, "n l"]) -> Prepared:
    """Bolaco: 50 evaluations on validation text."""

    def compressed(compression: float) -> PreTrainedModel:
        twin = twin_of(model)
        compress_by_search_(twin, tokens, validation, compression=compression)
        return twin

    return compressed


def without_validation(prepare: Callable[[PreTrainedModel, Tensor], Prepared]) -> Method:
    """Method from a rule that reads calibration text alone."""
    return lambda model, tokens, _: prepare(model, tokens)


METHODS: dict[str, Method] = {
    "uniform": in_one_call(ratios="uniform", ranks="uniform"),
    "mgaa": in_one_call(),
    "loss": in_one_call(**mgaa.LOSS),
    "lorap": in_one_call(**mgaa.LORAP),
    "svd-llm": in_one_call(factors="whitened", ratios="uniform", ranks="uniform"),
    "zs-svd": without_validation(zs_svd.prepare),
    "lems": without_validation(lems.prepare),
    "asvd": without_validation(asvd.prepare),
    "bolaco": by_search,
}
