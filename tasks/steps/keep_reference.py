"""The step of a search, keep reference: what the dense model says on the validation windows, computed once (`mgaa.search.objective`)."""

from pathlib import Path

from tasks.artifacts.backbone import backbone_model
from tasks.artifacts.files import REFERENCE, token_windows
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="reference")
def keep_reference(
    out: Path, store: Store, backbone: Artifact, windows: Artifact, *, batch_size: int, device: str
) -> None:
    """Keep the inputs of the head of the dense model at every token of the windows, from which its logits are computed again."""
    from safetensors.torch import save_file

    from mgaa.checkpoints.save import twin_of
    from mgaa.search.objective import reference

    model, _ = backbone_model(store, backbone, device)
    hidden = reference(twin_of(model), token_windows(store, windows), batch_size=batch_size)
    save_file({"hidden": hidden}, out / REFERENCE)
