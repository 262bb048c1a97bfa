"""Tying of head and embedding, as the files hold them, whatever the config says.

`tie_word_embeddings` is only a request. transformers ties an embedding and a head if one of them is missing in the files, or if they are
equal; it keeps both where they differ (`PreTrainedModel.tie_weights`). Other readers of a config take it literally and drop the head, and
so does transformers when a model is built anew. Hence the config is corrected before anything is derived from it.
"""

from transformers import PreTrainedModel


def state_tying(model: PreTrainedModel) -> None:
    """Set the config to untied where the head is a tensor of its own."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    pairs = model.get_expanded_tied_weights_keys()
    if pairs and all(
        head in tensors and embedding in tensors and tensors[head] is not tensors[embedding]
        for head, embedding in pairs.items()
    ):
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
