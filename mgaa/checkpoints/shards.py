"""Blockwise writing of a model whose blocks are offloaded: never more than two blocks are in memory.

Each block is put into its final form while its tensors are loaded, and written by a thread while the next one is processed. A block whose
file exists already, from a run that was killed, is not read again. In the end the files become those of `save_pretrained`: one
`model.safetensors` where everything fits into one shard, else one shard per block with an index.
"""

import copy
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from mgaa.blocks.offload import edit_block, load_block
from mgaa.blocks.resume import atomic_file, resume_folder
from mgaa.boundary import translate_errors
from mgaa.checkpoints.folder import INDEX, WEIGHTS
from mgaa.models.architectures import decoder_blocks, path_of_blocks

METADATA = {"format": "pt"}
"""Metadata that transformers writes into the header of its files."""


def write_blockwise(
    model: PreTrainedModel,
    folder: Path,
    *,
    change: Callable[[int], None],
    shell: Callable[[], PreTrainedModel],
    max_shard_size: int,
) -> None:
    """Write weights, config and generation settings; resumes from the blocks of a killed call.

    Args:
        model: offloaded (`mgaa.blocks.offload`).
        change: puts a block into its final form, in place; called while its tensors are loaded, or, for blocks that are written already,
            while they are on the meta device.
        shell: called once all blocks have their final form: returns the model whose class and config the folder gets; its tensors are not
            used.
        max_shard_size: bytes of weights up to which they go into one file.
    """
    resume_folder(folder)
    for path in folder.iterdir():
        if path.name != "boot" and path.name not in {block_part(index) for index in range(len(decoder_blocks(model)))}:
            path.unlink()
    _write_blocks(model, folder, change)
    written = shell()
    inside = f"{path_of_blocks(model)}."
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside)}
    save_model(written, folder, max_shard_size=2**62, state_dict=rest)
    join_parts(folder, len(decoder_blocks(model)), max_shard_size)
    (folder / "boot").unlink()


def save_model(
    model: PreTrainedModel, folder: Path, *, max_shard_size: int | str, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Call `save_pretrained` but keep generation settings that it would refuse; some published models have such settings."""
    if vars(model).get("is_quantized") is False:
        # dequantised: transformers would write the weights under the names of quantised ones
        vars(model).pop("_weight_conversions", None)
    generation = getattr(model, "generation_config", None)
    model.generation_config = GenerationConfig()
    try:
        with translate_save_errors(f"this {type(model).__name__} with its config"):
            model.save_pretrained(folder, max_shard_size=max_shard_size, state_dict=state_dict)
    finally:
        model.generation_config = generation
    _save_generation(model, folder)


def save_settings(model: PreTrainedModel, folder: Path) -> None:
    """Write the files of `save_model` other than the weights; the model stays unchanged."""
    with translate_save_errors(f"the config of this {type(model).__name__}"):
        copy.deepcopy(model.config).save_pretrained(folder)
    _save_generation(model, folder)


def _save_generation(model: PreTrainedModel, folder: Path) -> None:
    if model.generation_config is not None:
        with translate_save_errors("these generation settings"):
            model.generation_config.to_json_file(folder / "generation_config.json")


def translate_save_errors(what: str) -> AbstractContextManager[None]:
    """Turn whatever transformers raises while it writes into one `InputError`; errors of the disk are left to the caller."""
    return translate_errors(
        f"transformers cannot save {what}", "correct that there, and save again", passing=(OSError, SafetensorError)
    )


def _write_blocks(model: PreTrainedModel, folder: Path, change: Callable[[int], None]) -> None:
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="shards") as writer:
        for index, block in enumerate(decoder_blocks(model)):
            path = folder / block_part(index)
            if path.exists():
                with edit_block(block):
                    change(index)
                continue
            with load_block(block, ahead=1):
                change(index)
                tensors = _tensors(model, index, block)
            if writing is not None:
                writing.result()
            writing = writer.submit(write_part, tensors, path)
        if writing is not None:
            writing.result()


def write_part(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a weight file atomically."""
    with atomic_file(path) as draft:
        save_file(tensors, draft, metadata=METADATA)


def _tensors(model: PreTrainedModel, index: int, block: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a block under their names in the files."""
    own = {f"{path_of_blocks(model)}.{index}.{name}": tensor for name, tensor in block.state_dict().items()}
    renamed: dict[str, Tensor] = revert_weight_conversion(model, own)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in renamed.items()}


def block_part(index: int) -> str:
    """Return the name of the file of a block before the parts are joined."""
    return f"block-{index:04d}.safetensors"


def join_parts(folder: Path, blocks: int, max_shard_size: int) -> None:
    """Join the parts into one file, or into shards with an index."""
    parts = [folder / WEIGHTS, *(folder / block_part(index) for index in range(blocks))]
    headers = {path: _shapes(path) for path in parts}
    total = sum(size for header in headers.values() for _, size in header.values())
    if total <= max_shard_size:
        tensors = {name: tensor for path in parts for name, tensor in load_file(path).items()}
        write_part(tensors, folder / WEIGHTS)
        for path in parts[1:]:
            path.unlink()
        return
    names: dict[str, str] = {}
    for number, path in enumerate(parts, start=1):
        shard = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        names |= dict.fromkeys(headers[path], shard)
        path.rename(folder / shard)
    parameters = sum(count for header in headers.values() for count, _ in header.values())
    content = {"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": names}
    (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shapes(path: Path) -> dict[str, tuple[int, int]]:
    """Return the number of entries and bytes of every tensor of a file."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping; pages are not read)
        return {name: (tensor.numel(), tensor.nbytes) for name, tensor in tensors.items()}
