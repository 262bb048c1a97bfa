"""Step 8, factorize: the factors of one block at its ranks, in the dtype of the backbone (`mgaa.factors`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgaa.errors import NumericalError
from tasks.artifact import Artifact, Store
from tasks.load_backbone import backbone_model
from tasks.records import RANKS, backbone_matrices, block_file, table
from tasks.step import step

if TYPE_CHECKING:
    from mgaa.budget import Matrix
    from mgaa.lowrank import Factors


@step(kind="factors", task_run_name="factorize-{block}")
def factorize(
    out: Path, store: Store, backbone: Artifact, spectra: Artifact, ranks: Artifact, *, block: int, device: str
) -> None:
    """Slice the bases of `block` at the ranks of its matrices; matrices that stay dense have no factors."""
    from safetensors.torch import save_file

    model, _ = backbone_model(store, backbone, device)
    outcome = table(store, ranks, RANKS)["matrices"]
    inside = {m: outcome[m.name]["rank"] for m in backbone_matrices(store, backbone) if m.block == block}
    found = sliced(model, inside, store.folder(spectra) / block_file(block), device)
    tensors = {
        f"{name}/{part}": tensor.cpu()
        for name, factors in found.items()
        for part, tensor in (("A", factors.A), ("B", factors.B), ("bias", factors.bias))
        if tensor is not None
    }
    save_file(tensors, out / block_file(block))


def sliced(model: Any, ranks: Mapping["Matrix", int | None], spectra: Path, device: str) -> dict[str, "Factors"]:
    """Factors by the name of the matrix, for the matrices of one block that have a rank.

    Args:
        spectra: the file of the block.
    """
    from mgaa.factors import factorize as slice_rank
    from mgaa.factors import load_spectra

    found, factors = load_spectra(spectra, device), {}
    for matrix, rank in ranks.items():
        if rank is not None:
            linear = model.get_submodule(matrix.name)
            bias = None if linear.bias is None else linear.bias.detach()
            try:
                factors[matrix.name] = slice_rank(linear.weight.detach(), bias, found[matrix.local], rank)
            except NumericalError as error:
                raise NumericalError(f"{matrix.name}: {error}") from error
    return factors
