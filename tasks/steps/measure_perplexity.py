"""Step 10a, measure perplexity: how well one model predicts one section of the texts, window by window.

The model is read back from the files that a user would load, never taken from memory, so what is measured is what is shipped.
"""

from dataclasses import asdict
from pathlib import Path

from tasks.artifacts.files import PERPLEXITY, token_stream, write_table
from tasks.artifacts.models import load_artifact, weight_bytes
from tasks.artifacts.specs import WindowSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import place_of_hidden
from tasks.cache.step import resuming_step
from tasks.evaluation.protocol import perplexity_table


@resuming_step(kind="perplexity")
def measure_perplexity(
    out: Path,
    unfinished: Path,
    store: Store,
    model: Artifact,
    tokens: Artifact,
    *,
    windows: WindowSpec,
    device: str,
) -> None:
    """Measure a backbone or a checkpoint on one section.

    Args:
        model: artifact `backbone`, `model` or `checkpoint`.
    """
    from mgaa.evaluation.perplexity import perplexity

    loaded, _ = load_artifact(store, model, device)
    ids, card = token_stream(store, tokens)
    width = loaded.config.get_text_config().hidden_size * loaded.dtype.itemsize
    place = place_of_hidden(device, len(ids) * width * windows.length // (windows.stride or windows.length))
    result = perplexity(loaded, ids, **asdict(windows), place=place, folder=unfinished / "hidden")
    bits = result.bits_per_byte(card["stream_tokens"], card["bytes"])
    table = perplexity_table(result, card, loaded, size=weight_bytes(store, model))
    write_table(out / PERPLEXITY, {**table, "bits_per_byte": bits})
