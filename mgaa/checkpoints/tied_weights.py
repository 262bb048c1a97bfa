"""A head that is the embedding, or is not: by what the files hold, whatever the config says.

`tie_word_embeddings` is a wish. transformers ties an embedding and a head of which one is missing in the files, or which are equal; it
keeps both where they differ (`PreTrainedModel.tie_weights`). Others who read a config take it at its word and drop the head, and so does
transformers once a model is built anew. Hence a config says what the model is before anything is made by it.
"""

from transformers import PreTrainedModel


def state_tying(model: PreTrainedModel) -> None:
    """Say in the config that the head is not the embedding, where it is a tensor of its own."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    pairs = model.get_expanded_tied_weights_keys()
    if pairs and all(
        head in tensors and embedding in tensors and tensors[head] is not tensors[embedding]
        for head, embedding in pairs.items()
    ):
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
