"""Stages of the pipeline in `mgaa` alone, from files to files: the work of the steps of `tasks`, without their cache.

Every stage takes a model that is in memory or stays in its files (`mgaa.blocks.offload`) and does the same with both, so that benchmarks can
measure it with nothing but torch and transformers installed.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import mgaa
from mgaa.blocks.hidden_states import Place
from mgaa.blocks.offload import is_offloaded, load_block
from mgaa.budget import Matrix
from mgaa.checkpoints.save import apply_factors, save_blockwise, twin_of
from mgaa.evaluation.perplexity import perplexity
from mgaa.factors import decompose_block, factorize_linear, load_energies, load_spectra, save_spectra
from mgaa.levels import Target, allocate
from mgaa.models.architectures import decoder_blocks, matrices_of
from mgaa.models.lowrank import Factors
from mgaa.ranks import ladders_of
from mgaa.statistics.calibration import Calibration, CalibrationSettings
from mgaa.statistics.statistics import BlockStatistics, load_cosines

FACTORS = "afm"
RATIOS = ("softmax", {"temperature": 0.1, "band": 0.1})
RANKS = ("energy", dict[str, object]())
"""The defaults of `params.yaml`."""


def calibrate(
    model: PreTrainedModel, tokens: Tensor, folder: Path, *, place: Place = "device", batch_size: int = 8
) -> None:
    """Write the statistics of every block."""
    with _waiting(folder, place) as kept:
        calibration = Calibration(model, tokens, CalibrationSettings(batch_size=batch_size), place=place, folder=kept)
        for index in range(len(calibration)):
            calibration.measure(index).save(_file(folder, index))
            calibration.commit()
        calibration.close()


def decompose(model: PreTrainedModel, statistics: Path, folder: Path) -> None:
    """Write energies and bases of every block."""
    for index, inside in _by_block(model):
        with load_block(decoder_blocks(model)[index]):
            weights = {matrix.local: model.get_submodule(matrix.name).weight.detach() for matrix in inside}
            found = BlockStatistics.load(_file(statistics, index), str(model.device))
            save_spectra(decompose_block(weights, found, FACTORS), _file(folder, index))


def allocated(
    model: PreTrainedModel, statistics: Path, spectra: Path, folder: Path, *, compression: float
) -> dict[str, int]:
    """Ratios and ranks of all blocks; returns the ranks by matrix, without those that stay dense."""
    energies: dict[str, Tensor] = {}
    cosines: dict[str, float] = {}
    centred = False
    for index, inside in _by_block(model):
        here, centred = load_energies(_file(spectra, index))
        energies |= {matrix.name: here[matrix.local] for matrix in inside}
        cosines |= {f"{index}.{name}": pair[0] for name, pair in load_cosines(_file(statistics, index)).items()}
    ladders = ladders_of(matrices_of(model), energies, centred=centred)
    _, outcome = allocate(ladders, cosines, Target(compression), RATIOS, RANKS)
    ranks = {each.matrix.name: each.rank for each in outcome if each.rank is not None}
    (folder / "ranks.json").write_text(json.dumps(ranks), encoding="utf-8")
    return ranks


def factorize(model: PreTrainedModel, spectra: Path, ranks: dict[str, int], folder: Path) -> None:
    """Write the factors of every block."""
    for index, inside in _by_block(model):
        tensors: dict[str, Tensor] = {}
        with load_block(decoder_blocks(model)[index]):
            found = load_spectra(_file(spectra, index), str(model.device))
            for matrix in inside:
                if matrix.name in ranks:
                    made = factorize_linear(model, matrix.name, found.pop(matrix.local), ranks[matrix.name])
                    tensors |= {f"{matrix.name}/{key}": part for key, part in vars(made).items() if part is not None}
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, _file(folder, index))


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, factors: Path, folder: Path) -> None:
    """Write the compressed checkpoint; the model remains unchanged."""
    twin = twin_of(model)

    def change(index: int) -> None:
        tensors = load_file(_file(factors, index))
        names = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
        parts = {name: [tensors.get(f"{name}/{key}") for key in ("A", "B", "bias")] for name in names}
        apply_factors(twin, {name: Factors(*pair) for name, pair in parts.items()})  # type: ignore[arg-type]

    if is_offloaded(twin):
        save_blockwise(twin, tokenizer, folder, change=change)
        return
    for index in range(len(decoder_blocks(twin))):
        change(index)
    mgaa.save(twin, tokenizer, folder)


def evaluate(
    source: Path, stream: Tensor, folder: Path, *, length: int, streamed: bool, place: Place = "device"
) -> None:
    """Write the losses of all windows of a checkpoint."""
    model, _ = mgaa.load(source, stream=streamed)
    with _waiting(folder, place) as kept:
        found = perplexity(model, stream, length=length, place=place, folder=kept)
    (folder / "losses.json").write_text(json.dumps(found.losses), encoding="utf-8")


def densify(source: Path, folder: Path, *, streamed: bool) -> None:
    """Write a checkpoint with its factors folded back."""
    if streamed:
        mgaa.densify_folder(source, folder)
        return
    model, tokenizer = mgaa.load(source, device="cpu")
    mgaa.save(mgaa.densify(model), tokenizer, folder)


@contextmanager
def _waiting(folder: Path, place: Place) -> Iterator[Path | None]:
    """Folder for hidden states that are kept on disk."""
    if place != "disk":
        yield None
        return
    with tempfile.TemporaryDirectory(dir=folder) as kept:
        yield Path(kept)


def _by_block(model: PreTrainedModel) -> Iterator[tuple[int, list[Matrix]]]:
    matrices = matrices_of(model)
    for index in range(len(decoder_blocks(model))):
        yield index, [matrix for matrix in matrices if matrix.block == index]


def _file(folder: Path, index: int) -> Path:
    return folder / f"block-{index:04d}.safetensors"
