"""A model whose decoder blocks stay in their files until they are needed.

The rest of the model (embeddings, norms, head) is in memory; the tensors of the blocks are on the meta device, where they take none. Within
`with load_block(block)` a block has its tensors; afterwards they are freed. A block that is called outside that context fetches its tensors
for the call, so everything that works with the model in memory works here as well (generation, evaluation harnesses), and block-by-block
code (`mgaa.blocks.blockwise`) reads each of them once. A thread reads the next block from the disk while one computes.

transformers decides which tensors of the files form a block, and how they are converted (renaming, stacking of experts): a block is loaded
by the code that loads a whole model in `from_pretrained`.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import ref

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from mgaa.errors import InputError
from mgaa.models.architectures import architecture_of, decoder_blocks, path_of_blocks
from mgaa.models.fused import unfuse_block_
from mgaa.models.tensor_names import map_tensors

_PLACE = "_offload_place"


def offload_(model: PreTrainedModel, files: Sequence[Path], device: torch.device) -> PreTrainedModel:
    """Load everything but the decoder blocks onto `device`, and let the blocks fetch their tensors when needed; in place.

    Args:
        model: entirely on the meta device, as `from_pretrained(folder, device_map="meta")` returns it.
        files: its safetensors files.

    Raises:
        InputError: a file cannot be read.
    """
    offloaded = OffloadedBlocks(copy.deepcopy(model), files, device)
    missing = offloaded.fill_(model, offloaded.rest)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    model._move_missing_keys_from_meta_to_device(set(), {"": device}, None, None)
    _compute_buffers_(model, model)
    for index, block in enumerate(decoder_blocks(model)):
        vars(block)[_PLACE] = _Place(offloaded, index)
        block.forward = _OnDemand(block)
    return model


def _compute_buffers_(module: nn.Module, owner: PreTrainedModel) -> None:
    """Compute the buffers that no file holds (rotary frequencies, positions of patches), as transformers does when it initialises."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    if module._non_persistent_buffers_set:
        owner._init_weights(module)
    for child in module.children():
        _compute_buffers_(child, owner)


def is_offloaded(model: PreTrainedModel) -> bool:
    """Return whether the blocks of a model are offloaded to their files."""
    return any(_PLACE in vars(module) for module in model.modules())


def folders_of(model: PreTrainedModel) -> set[Path]:
    """Return the folders whose files hold the blocks of a model; empty where it is in memory."""
    places: list[_Place] = [vars(module)[_PLACE] for module in model.modules() if _PLACE in vars(module)]
    return {path.parent for place in places for path in place.offloaded.files}


@contextmanager
def load_block(block: nn.Module, *, ahead: int = 0) -> Iterator[nn.Module]:
    """Within this context a block has its tensors; no effect for a block that is in memory anyway.

    Args:
        ahead: offset of the block to read from the disk in the meantime; 0 for none.

    Raises:
        InputError: a file of the model cannot be read any more, or holds other tensors than when it was opened.
    """
    place: _Place | None = vars(block).get(_PLACE)
    if place is None:
        yield block
        return
    with place.lock, torch.inference_mode(False):  # parameters created in inference mode could not be used outside
        if place.users == 0:
            _adopt_(block, place.offloaded.fetch(place.index), place)
        place.users += 1
    if ahead:
        place.offloaded.read_ahead(place.index + ahead)
    try:
        yield block
    finally:
        with place.lock, torch.inference_mode(False):
            place.users -= 1
            if place.users == 0:
                _empty_(block)


@contextmanager
def edit_block(block: nn.Module) -> Iterator[None]:
    """Within this context an offloaded block may be changed, because its tensors in the files will not be needed again."""
    place: _Place = vars(block)[_PLACE]
    place.final = True
    try:
        yield
    finally:
        place.final = False


def is_absent(model: nn.Module, name: str) -> bool:
    """Return whether the module of that name is in an offloaded block, which cannot be changed."""
    module: nn.Module | None = model
    for part in name.split("."):
        place: _Place | None = vars(module).get(_PLACE)
        if place is not None:
            return place.users == 0 and not place.final
        module = module._modules.get(part) if module is not None else None
        if module is None:
            return False
    return False


class _Place:
    """Location of the tensors of a block, and the number of contexts that hold them in memory."""

    def __init__(self, offloaded: "OffloadedBlocks", index: int) -> None:
        self.offloaded, self.index, self.users, self.lock = offloaded, index, 0, Lock()
        self.final = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Place":
        """Let a copy of the block start without tensors of its own."""
        return _Place(self.offloaded, self.index)


class OffloadedBlocks:
    """Decoder blocks of a model, offloaded to its files.

    Args:
        skeleton: the model on the meta device; it stays there.
        files: its safetensors files.
        device: where blocks are loaded.
    """

    def __init__(self, skeleton: PreTrainedModel, files: Sequence[Path], device: torch.device) -> None:
        self._skeleton, self._device, self.files = skeleton, device, tuple(files)
        self._entry = architecture_of(skeleton.config)
        self._conversions: list[Any] = getattr(skeleton, "_weight_conversions", None) or []
        self._lock, self._ahead = Lock(), dict[int, Future[dict[str, Tensor]]]()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._blocks: list[dict[str, Path]] = [{} for _ in decoder_blocks(skeleton)]
        self.rest: dict[str, Path] = {}
        path, files_of = f"{path_of_blocks(skeleton)}.", index_tensors(files)
        for name, place in map_tensors(skeleton, files_of).items():
            if place is not None:
                inside = place.startswith(path)
                names = self._blocks[int(place.removeprefix(path).partition(".")[0])] if inside else self.rest
                names[name] = files_of[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> "OffloadedBlocks":
        """Let copies of a model fetch from the same files."""
        return self

    def fetch(self, index: int) -> nn.Module:
        """Build a new block with its tensors on the device, as transformers does."""
        ahead = self._ahead.pop(index, None)
        tensors = self._read(index) if ahead is None else ahead.result()
        with self._lock:
            blocks = decoder_blocks(self._skeleton)
            empty = copy.deepcopy(blocks[index])
            try:
                self.fill_(self._skeleton, self._blocks[index], tensors)
                return blocks[index]
            finally:
                blocks[index] = empty

    def read_ahead(self, index: int) -> None:
        """Let a thread read a block from the disk, for the next `fetch` of it."""
        if 0 <= index < len(self._blocks) and index not in self._ahead:
            self._ahead[index] = self._reader.submit(self._read, index)

    def fill_(
        self, model: PreTrainedModel, names: dict[str, Path], tensors: dict[str, Tensor] | None = None
    ) -> set[str]:
        """Load these tensors of the files into a model, and return the names of those that are still missing.

        Raises:
            InputError: they differ from those with which the model was opened.
        """
        dtype = model.dtype
        options = LoadStateDictConfig(
            dtype=dtype,
            dtype_plan=model._get_dtype_plan(dtype),
            device_map={"": self._device},
            weight_mapping=self._conversions,
        )
        with _hide_progress():
            report, _ = convert_and_load_state_dict_in_model(model, tensors or _read_tensors(names), options)
        wrong = sorted({*report.unexpected_keys, *(name for name, *_ in report.mismatched_keys)})
        if wrong or report.conversion_errors:
            path = next(iter(names.values()))
            raise InputError(
                f"{path.parent} no longer holds {wrong or sorted(report.conversion_errors)} as it did when the model was opened: "
                "the files were exchanged during the run; start again"
            )
        missing: set[str] = report.missing_keys
        return missing

    def unfused(self, block: nn.Module, index: int) -> nn.Module:
        """Return the block with its fused layers split."""
        return unfuse_block_(self._entry, self._skeleton.config, index, block)

    def _read(self, index: int) -> dict[str, Tensor]:
        return _read_tensors(self._blocks[index])


@contextmanager
def _hide_progress() -> Iterator[None]:
    """Hide the progress bar for each block; a bar takes as long as its tensors."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def index_tensors(files: Sequence[Path]) -> dict[str, Path]:
    """Map every tensor to its file; only headers are read.

    Raises:
        InputError: a file cannot be read.
    """
    places: dict[str, Path] = {}
    for path in files:
        with _open_file(path) as file:
            places |= dict.fromkeys(file.keys(), path)
    return places


def _read_tensors(names: dict[str, Path]) -> dict[str, Tensor]:
    """Read tensors into memory of their own: pages of mapped files would count towards the process's memory while they are open."""
    tensors: dict[str, Tensor] = {}
    for path in dict.fromkeys(names.values()):
        with _open_file(path) as file:
            tensors |= {name: aligned(file.get_tensor(name)) for name, place in names.items() if place == path}
    return tensors


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor at the alignment of torch's allocator: a multiple of 64 bytes.

    Kernels round differently at other alignments, and the offset of a tensor in a file is an accident of the other tensors' sizes.
    """
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): it was there when the model was opened; fetch it again"
        ) from error


def _adopt_(block: nn.Module, fresh: nn.Module, place: _Place) -> None:
    """Give a block the tensors of a fresh one, which is split where the block is."""
    if block.state_dict().keys() != fresh.state_dict().keys():
        fresh = place.offloaded.unfused(fresh, place.index)
    trainable = {name: parameter.requires_grad for name, parameter in block.named_parameters()}
    block.load_state_dict(fresh.state_dict(), assign=True)
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(trainable[name])


def _empty_(block: nn.Module) -> None:
    """Free the tensors of a block, whatever it has become."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                module._buffers[name] = buffer.to("meta")


class _OnDemand:
    """Forward of an offloaded block outside `load_block`. It holds the block weakly: in a cycle a model would outlive its last user."""

    def __init__(self, block: nn.Module) -> None:
        self._block = ref(block)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_OnDemand":
        """Return the forward of the copied block."""
        return _OnDemand(memo[id(self._block())])

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        block = self._block()
        assert block is not None, "called by its block"
        with load_block(block):
            return type(block).forward(block, *arguments, **named)
