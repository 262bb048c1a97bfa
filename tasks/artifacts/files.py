"""Files inside artifacts: their names, and how they are read.

Kept apart from the steps that write them, so that the code of one step is no part of the cache key of another.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.cache.artifact import Artifact, Store
from tasks.data.chats import Document, plain_text

BACKBONE = "backbone.json"
CARD = "card.json"
TOKENS = "tokens.safetensors"
PROMPTS = "prompts.safetensors"
ANSWERS = "answers.json"
SAMPLES = "samples.json"
RATIOS = "ratios.json"
RANKS = "ranks.json"
PERPLEXITY = "perplexity.json"
TASK_SCORES = "task_scores.json"
METRICS = "metrics.json"
MEASUREMENT = "measurement.json"
EXAMPLES = "examples.safetensors"
HELD_OUT = "held_out.safetensors"
CURVE = "recovery.json"
REFERENCE = "reference.safetensors"
TRIAL = "trial.json"
PROPOSAL = "proposal.json"
SEARCH = "search.json"
CHANNELS = "channels"
"""The tensor of kept channels in a file of `factors`."""


def block_file(index: int) -> str:
    """The name of a block's file in the artifacts `statistics`, `spectra`, `scores` and `factors`."""
    return f"block-{index:04d}.safetensors"


def energy_file(index: int) -> str:
    """The name of the energies of a block in `factors` that were made behind compressed blocks, where there are no `spectra`."""
    return f"energies-{index:04d}.safetensors"


def score_file(index: int) -> str:
    """The name of the channel scores of a block in such `factors`."""
    return f"scores-{index:04d}.safetensors"


def write_table(path: Path, table: Any) -> None:
    """Write a JSON file as people read it."""
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_table(store: Store, artifact: Artifact, name: str) -> dict[str, Any]:
    """A JSON file of an artifact."""
    content: dict[str, Any] = json.loads((store.folder(artifact) / name).read_text(encoding="utf-8"))
    return content


def rank_table(
    ranks: Sequence[Any], *, budget: int, channels: Mapping[str, Any] | None, latency: Any = None
) -> dict[str, Any]:
    """The outcomes for matrices (`mgaa.ranks.Rank`) as JSON: `{budget, linear_parameters, channels, matrices: {name: {...}}}`.

    Args:
        latency: that objective (`mgaa.allocation.latency.Latency`), which adds what its profile was measured on, and each matrix's
            predicted seconds.
    """
    return {
        "budget": budget,
        "linear_parameters": sum(rank.parameters for rank in ranks),
        "channels": channels,
        **({} if latency is None else {"latency": latency.facts}),
        "matrices": {
            rank.matrix.name: {"rank": rank.rank, "parameters": rank.parameters, "energy": rank.energy}
            | ({} if rank.width is None else {"width": rank.width})
            | ({"unreached": True} if rank.unreached else {})
            | ({} if latency is None else {"predicted_seconds": latency.seconds(rank.matrix, rank.rank)})
            for rank in ranks
        },
    }


def backbone_record(store: Store, backbone: Artifact) -> dict[str, Any]:
    """Source, revision, files, dtype, shape and matrices of the backbone."""
    return read_table(store, backbone, BACKBONE)


def backbone_matrices(store: Store, backbone: Artifact) -> list[Any]:
    """Every `mgaa.budget.Matrix` of the model, in order, without loading it."""
    from mgaa.budget import Matrix

    return [Matrix(**fields) for fields in backbone_record(store, backbone)["matrices"]]


def documents_of(store: Store, texts: Artifact, section: str) -> list[Document]:
    """The documents of a section of the artifact `texts`, one per line: a text, or the messages of a conversation."""
    lines = (store.folder(texts) / f"{section}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def texts_of(store: Store, texts: Artifact, section: str) -> list[str]:
    """The documents of a section as texts; of conversations the contents of the messages."""
    return [plain_text(document) for document in documents_of(store, texts, section)]


def token_stream(store: Store, tokens: Artifact) -> tuple[Any, dict[str, Any]]:
    """The ids of a section in one row, and its card."""
    from safetensors.torch import load_file

    return load_file(store.folder(tokens) / TOKENS)["ids"], read_table(store, tokens, CARD)


def token_windows(store: Store, tokens: Artifact) -> Any:
    """The ids of a section as windows (sequences, length), without the tail that fills none."""
    ids, card = token_stream(store, tokens)
    length = card["length"]
    return ids[: len(ids) // length * length].reshape(-1, length)
