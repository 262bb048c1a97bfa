"""Step 3, tokenize: the documents of a section as one row of token ids, packed with the backbone's tokenizer (`mgaa.inputs.tokens`).

Conversations become texts by the tokenizer's chat template first (tasks/data/chats.py). Under a protocol of published perplexities the rows
are joined instead, and only whole windows are kept (tasks/data/protocols.py).
"""

from pathlib import Path

from mgaa.errors import UsageError
from tasks.artifacts.backbone import backbone_tokenizer
from tasks.artifacts.files import CARD, TOKENS, backbone_record, documents_of, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step
from tasks.data import chats
from tasks.data.documents import digest
from tasks.data.protocols import PROTOCOLS, describe, separator_of


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
    protocol: str | None = None,
    separator: str = "auto",
) -> None:
    """Token ids of a section in one row: the whole stream, or `samples` windows of `length` tokens end to end.

    Args:
        protocol: by which rows are joined with `separator` and cut into whole windows; null for packed documents.
    """
    from safetensors.torch import save_file

    from mgaa.inputs import tokens

    config, tokenizer = backbone_tokenizer(store, backbone)
    positions = tokens.positions_of(config)
    if positions is not None and length > positions:
        raise UsageError(f"data.{section}.length is {length}, expected at most {positions} (the model's positions).")
    contents = documents_of(store, texts, section)
    if protocol is None:
        rendered, rule = chats.render_chats(contents, tokenizer, section)
        stream = tokens.pack(rendered, tokenizer, rule=rule)
        used, facts = stream.ids, {}
    else:
        stream = tokens.join([*map(chats.plain_text, contents)], tokenizer, separator=separator_of(protocol, separator))
        limit = PROTOCOLS[protocol].windows
        used = stream.ids if limit is None else stream.ids[: limit * length]
        facts = {"protocol": describe(protocol, separator, len(stream), length)}
    tokens.check_vocabulary(stream.ids, backbone_record(store, backbone)["vocabulary"])
    windows = tokens.windows(used, length, samples=samples, seed=seed)
    ids = windows.flatten() if samples is not None or protocol is not None else stream.ids
    card = {
        "length": length,
        "tokens": len(ids),
        "documents": stream.documents,
        "bytes": stream.bytes,
        "stream_tokens": len(stream),
        "unknown": stream.unknown,
        "bos_rule": stream.rule,
        **facts,
        "data_digest": digest(contents),
        "token_digest": tokens.digest(ids),
    }
    save_file({"ids": ids}, out / TOKENS)
    write_table(out / CARD, card)
