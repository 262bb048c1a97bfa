"""Step 9c, recover: the compressed checkpoint tuned by small updates, which are then folded into its weights (`mgaa.recovery`).

Training may take hours, so the step resumes: its checkpoints lie in the store until it has ended.
"""

from pathlib import Path
from typing import Any

from tasks.artifacts.backbone import forget_models
from tasks.artifacts.files import CURVE, EXAMPLES, HELD_OUT, token_windows, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import resuming_step


@resuming_step(kind="checkpoint")
def recover(
    out: Path,
    unfinished: Path,
    store: Store,
    checkpoint: Artifact,
    examples: Artifact,
    validation: Artifact,
    *,
    plan: dict[str, Any],
    device: str,
) -> None:
    """Tune a checkpoint, and keep the losses with it.

    Args:
        validation: artifact `tokens`, by whose loss the best state is chosen, where the examples hold out none themselves.
        plan: arguments of `mgaa.recovery.Plan`.
    """
    from mgaa.checkpoints.save import fill_folder, load
    from mgaa.recovery import Examples, Plan, from_windows, recover_

    forget_models()
    model, processor = load(store.folder(checkpoint), device=device)
    folder = store.folder(examples)
    own = folder / HELD_OUT
    chosen = Examples.load(own) if own.exists() else from_windows(token_windows(store, validation))
    curve = recover_(model, Examples.load(folder / EXAMPLES), chosen, Plan(**plan), folder=unfinished)
    fill_folder(model.cpu(), processor, out)
    write_table(out / CURVE, {"plan": plan, **curve.to_dict()})
