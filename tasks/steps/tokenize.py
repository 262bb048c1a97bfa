"""Step 3, tokenize: the documents of a section as one row of token ids, packed with the backbone's tokenizer (`mgaa.inputs.tokens`).

Conversations become texts by the tokenizer's chat template first (tasks/data/chats.py).
"""

from pathlib import Path

from mgaa.errors import UsageError
from tasks.artifacts.backbone import backbone_tokenizer
from tasks.artifacts.files import CARD, TOKENS, backbone_record, documents_of, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step
from tasks.data import chats
from tasks.data.documents import digest


@step(kind="tokens", task_run_name="tokenize-{section}")
def tokenize(
    out: Path,
    store: Store,
    backbone: Artifact,
    texts: Artifact,
    *,
    section: str,
    length: int,
    samples: int | None,
    seed: int,
) -> None:
    """Token ids of a section in one row: the whole stream, or `samples` windows of `length` tokens end to end."""
    from safetensors.torch import save_file

    from mgaa.inputs import tokens

    config, tokenizer = backbone_tokenizer(store, backbone)
    positions = tokens.positions_of(config)
    if positions is not None and length > positions:
        raise UsageError(f"data.{section}.length is {length}, expected at most {positions} (the model's positions).")
    contents = documents_of(store, texts, section)
    rendered, rule = chats.render_chats(contents, tokenizer, section)
    stream = tokens.pack(rendered, tokenizer, rule=rule)
    tokens.check_vocabulary(stream.ids, backbone_record(store, backbone)["vocabulary"])
    windows = tokens.windows(stream.ids, length, samples=samples, seed=seed)
    ids = stream.ids if samples is None else windows.flatten()
    card = {
        "length": length,
        "tokens": len(ids),
        "documents": stream.documents,
        "bytes": stream.bytes,
        "stream_tokens": len(stream),
        "unknown": stream.unknown,
        "bos_rule": stream.rule,
        "data_digest": digest(contents),
        "token_digest": tokens.digest(ids),
    }
    save_file({"ids": ids}, out / TOKENS)
    write_table(out / CARD, card)
