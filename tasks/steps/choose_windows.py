"""The step of a search, choose windows: the validation windows that tell allocations apart (`mgaa.search.selection`)."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.files import CARD, MEASUREMENT, TOKENS, table, token_windows, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="tokens")
def choose_windows(
    out: Path, store: Store, candidates: Artifact, measurements: Sequence[Artifact], *, number: int
) -> None:
    """The `number` windows with the largest variance of the perplexity over `measurements`, in file order.

    Args:
        candidates: artifact `tokens`, cut into windows.
        measurements: of random allocations, on the candidates.
    """
    import torch
    from safetensors.torch import save_file

    from mgaa.inputs import tokens
    from mgaa.search.selection import most_telling

    windows, card = token_windows(store, candidates), table(store, candidates, CARD)
    measured = [table(store, each, MEASUREMENT) for each in measurements]
    losses = torch.tensor([each["losses"] for each in measured], dtype=torch.float64)
    chosen, variances = most_telling(losses, measured[0]["counts"], number)
    ids = windows[chosen].flatten()
    save_file({"ids": ids}, out / TOKENS)
    selection = {
        "candidates": len(windows),
        "allocations": len(measured),
        "windows": chosen.tolist(),
        "variance_chosen": float(variances[chosen].mean()),
        "variance_candidates": float(variances.mean()),
    }
    write_table(out / CARD, {**card, "tokens": len(ids), "token_digest": tokens.digest(ids), "selection": selection})
