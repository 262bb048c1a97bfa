"""Mapping of the tensors in the files to those of the model, by the rules of transformers.

Files and models name tensors differently: prefixes change, families were renamed, experts are stacked on loading. And files hold tensors
that no model has any more: buffers that earlier versions of transformers computed and saved, such as rotary frequencies and causal masks.
Those are ignored, here as there; see `rename_source_key` and `_keys_to_ignore_on_load_unexpected` in
https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers
"""

import re
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

LEFTOVER = re.compile(r"(^|\.)((attn|attention)\.(bias|masked_bias|causal_mask)|\w*inv_freq|position_ids)$")
"""Causal masks, rotary frequencies and positions, which many families once held as buffers (the biases of the attention's linears are one
level deeper). They follow from the config. transformers ignores them for some families, and warns about them in the others."""


def map_tensors(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str | None]:
    """Map each tensor of the files to the tensor of the model that it becomes, or becomes a part of; None where it is ignored.

    Args:
        model: as transformers built it, loaded or on the meta device, before any layer is split.
    """
    expected = model.state_dict()
    conversions: list[Any] | None = getattr(model, "_weight_conversions", None)
    conversions = get_model_conversion_mapping(model) if conversions is None else conversions
    rules = [[rule for rule in conversions if isinstance(rule, kind)] for kind in (WeightRenaming, WeightConverter)]
    places: dict[str, str | None] = {}
    taken: set[str] = set()
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, *rules, model.base_model_prefix, expected)
        if target not in expected and name in expected:
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, expected)
        is_double = pattern is None and target in taken  # stored under two names: transformers takes the first
        places[name] = target if target in expected and not is_double else None
        taken.add(target)
    return places
