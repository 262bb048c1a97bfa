"""Factors of a block: sliced out of the spectra, written to the files of the artifacts `factors`, and put into a model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts.backbone import backbone_model
from tasks.artifacts.files import CHANNELS, RANKS, backbone_matrices, block_file, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import temporary_folder

if TYPE_CHECKING:
    from torch import Tensor

    from mgaa.budget import Matrix
    from mgaa.models.lowrank import Dense, Factors


def slice_factors(
    model: Any, matrices: "list[Matrix]", outcome: Mapping[str, Any], spectra: Path, device: str
) -> dict[str, "Factors"]:
    """Factors by the name of the matrix, for those matrices of one block that have a rank.

    Args:
        outcome: the table of ranks.
        spectra: the file of the block.
    """
    from mgaa.factors import factorize_linear, load_spectra

    ranks = {matrix: outcome["matrices"][matrix.name]["rank"] for matrix in matrices}
    found = load_spectra(spectra, device)
    return {
        matrix.name: factorize_linear(model, matrix.name, found[matrix.local], rank)
        for matrix, rank in ranks.items()
        if rank is not None
    }


def write_factors(
    path: Path,
    factors: Mapping[str, "Factors"],
    kept: "Tensor | None",
    *,
    dense: Mapping[str, "Dense"] | None = None,
) -> None:
    """Write the factors of a block by matrix, the channels of its FFN that remain, and what stays dense with other weights.

    `restore_` reads them.
    """
    from safetensors.torch import save_file

    tensors = {
        f"{name}/{part}": tensor.cpu().contiguous()
        for name, layer in {**factors, **(dense or {})}.items()
        for part in ("A", "B", "weight", "bias")
        if (tensor := getattr(layer, part, None)) is not None
    }
    save_file(tensors if kept is None else tensors | {CHANNELS: kept.cpu()}, path)


def restore_(model: Any, block: int, path: Path) -> None:
    """Let a block become what a file of `factors` says, in place."""
    from safetensors.torch import load_file

    from mgaa.checkpoints.save import apply_channels, apply_dense, apply_factors
    from mgaa.models.lowrank import Dense, Factors

    tensors = load_file(path)
    kept = tensors.pop(CHANNELS, None)
    layers: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        layers.setdefault(name, {})[part] = tensor
    apply_factors(model, {name: Factors(**parts) for name, parts in layers.items() if "A" in parts})
    apply_dense(model, {name: Dense(**parts) for name, parts in layers.items() if "weight" in parts})
    if kept is not None:
        apply_channels(model, {block: kept})


@contextmanager
def model_at_ranks(
    store: Store, backbone: Artifact, spectra: Sequence[Artifact], ranks: Artifact | None, device: str, *, scratch: Path
) -> Iterator[Any]:
    """The backbone with the factors of all blocks at `ranks`, or as it is; what the process shares stays as it is.

    Args:
        scratch: a folder on a disk that has room for a compressed model.
    """
    from mgaa.blocks.offload import is_offloaded
    from mgaa.checkpoints.save import apply_factors, fill_blockwise, load, twin_of
    from mgaa.models.architectures import decoder_blocks

    model, processor = backbone_model(store, backbone, device)
    if ranks is None:
        yield twin_of(model)
        return
    outcome, twin = read_table(store, ranks, RANKS), twin_of(model)
    inside = {
        block: [*group] for block, group in groupby(backbone_matrices(store, backbone), key=lambda matrix: matrix.block)
    }

    def change(block: int) -> None:
        place = store.folder(spectra[block]) / block_file(block)
        apply_factors(twin, slice_factors(twin, inside[block], outcome, place, device))

    if not is_offloaded(twin):
        for block in inside:
            change(block)
        yield twin
        return
    with temporary_folder(scratch) as folder:
        for block in range(len(decoder_blocks(twin)), len(inside)):
            change(block)  # of a vision tower or a projector, which are in memory
        fill_blockwise(twin, processor, folder / "model", change=change)
        yield load(folder / "model", device=str(device), stream=True)[0]
