"""Step 8, factorize: the factors of one block at its ranks, in the dtype of the backbone (`mgaa.factors`)."""

from pathlib import Path
from typing import Any

from mgaa.errors import NumericalError
from tasks.artifact import Artifact, Store
from tasks.load_backbone import backbone_model
from tasks.records import RANKS, backbone_matrices, block_file, table
from tasks.step import step


@step(kind="factors", task_run_name="factorize-{block}")
def factorize(
    out: Path, store: Store, backbone: Artifact, spectra: Artifact, ranks: Artifact, *, block: int, device: str
) -> None:
    """Slice the bases of `block` at the ranks of its matrices; matrices that stay dense have no factors."""
    from safetensors.torch import save_file

    from mgaa.factors import factorize as slice_rank
    from mgaa.factors import load_spectra

    model, _ = backbone_model(store, backbone, device)
    outcome = table(store, ranks, RANKS)["matrices"]
    found = load_spectra(store.folder(spectra) / block_file(block), device)
    tensors: dict[str, Any] = {}
    for matrix in backbone_matrices(store, backbone):
        if matrix.block == block and (rank := outcome[matrix.name]["rank"]) is not None:
            linear = model.get_submodule(matrix.name)
            bias = None if linear.bias is None else linear.bias.detach()
            try:
                factors = slice_rank(linear.weight.detach(), bias, found[matrix.local], rank)
            except NumericalError as error:
                raise NumericalError(f"{matrix.name}: {error}") from error
            parts = {"A": factors.A, "B": factors.B} | ({} if factors.bias is None else {"bias": factors.bias})
            tensors |= {f"{matrix.name}/{part}": tensor.cpu() for part, tensor in parts.items()}
    save_file(tensors, out / block_file(block))
