"""The step of a search, try ranks: the objective of one compressed model, sliced out of the spectra in memory and never written."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts.factors import model_at_ranks
from tasks.artifacts.files import REFERENCE, TRIAL, token_windows, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="trial")
def try_ranks(
    out: Path,
    store: Store,
    backbone: Artifact,
    windows: Artifact,
    reference: Artifact | None,
    spectra: Sequence[Artifact],
    ranks: Artifact,
    *,
    divergence: float,
    batch_size: int,
    device: str,
) -> dict[str, Any]:
    """Measure the backbone at `ranks`; the manifest tells the seconds of the evaluation alone.

    Args:
        windows: artifact `tokens` of validation.
        reference: of the dense model on the same windows; null where `divergence`, its weight, is 0.
    """
    from safetensors.torch import load_file

    from mgaa.search.objective import objective

    dense = None if reference is None else load_file(store.folder(reference) / REFERENCE)["hidden"]
    with model_at_ranks(store, backbone, spectra, ranks, device, scratch=out.parent) as model:
        began = time.perf_counter()
        score = objective(model, token_windows(store, windows), dense, weight=divergence, batch_size=batch_size)
        seconds = time.perf_counter() - began
    names = ("objective", "perplexity", "divergence", "losses")
    write_table(out / TRIAL, {name: getattr(score, name) for name in names})
    return {"evaluation_seconds": seconds}
