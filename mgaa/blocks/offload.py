"""A model whose decoder blocks stay in their files until they are needed.

The rest of it (embeddings, norms, head) is in memory; the tensors of the blocks are on the meta device, where they take none. Inside
`with resident(block)` a block has its tensors; behind it they are gone. A block that is called without that fetches its tensors for the
call, so everything works that works with the model in memory (generation, evaluation harnesses), and what goes block by block
(`mgaa.blocks.blockwise`) reads each of them once. The next block is read from the disk by a thread while one computes.

Which tensors of the files make a block, and what is done to them on the way (renaming, stacking of experts), is left to transformers: the
same code loads a block here that loads a whole model in `from_pretrained`.
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
from mgaa.models.tensor_names import places

_PLACE = "_place_on_shelf"


def shelve_(model: PreTrainedModel, files: Sequence[Path], device: torch.device) -> PreTrainedModel:
    """Load everything but the decoder blocks onto `device`, and let the blocks fetch their tensors when they are needed; in place.

    Args:
        model: all of it on the meta device, as `from_pretrained(folder, device_map="meta")` gives it.
        files: its safetensors files.

    Raises:
        InputError: a file cannot be read.
    """
    shelf = Shelf(copy.deepcopy(model), files, device)
    missing = shelf.fill_(model, shelf.rest)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    model._move_missing_keys_from_meta_to_device(set(), {"": device}, None, None)
    _compute_buffers_(model, model)
    for index, block in enumerate(decoder_blocks(model)):
        vars(block)[_PLACE] = _Place(shelf, index)
        block.forward = _OnDemand(block)
    return model


def _compute_buffers_(module: nn.Module, owner: PreTrainedModel) -> None:
    """What no file holds (rotary frequencies, positions of patches), transformers computes where it initialises, each model its own."""
    owner = module if isinstance(module, PreTrainedModel) else owner
    if module._non_persistent_buffers_set:
        owner._init_weights(module)
    for child in module.children():
        _compute_buffers_(child, owner)


def is_shelved(model: PreTrainedModel) -> bool:
    """Whether the blocks of a model stay in their files."""
    return any(_PLACE in vars(module) for module in model.modules())


def folders_of(model: PreTrainedModel) -> set[Path]:
    """The folders whose files the blocks of a model stay in; none where it is in memory."""
    places: list[_Place] = [vars(module)[_PLACE] for module in model.modules() if _PLACE in vars(module)]
    return {path.parent for place in places for path in place.shelf.files}


@contextmanager
def resident(block: nn.Module, *, ahead: int = 0) -> Iterator[nn.Module]:
    """Inside this context a block has its tensors; for a block that is in memory anyway it does nothing.

    Args:
        ahead: how many blocks further on that one is which is read from the disk meanwhile; 0 for none.

    Raises:
        InputError: a file of the model cannot be read any more, or holds other tensors than when it was opened.
    """
    place: _Place | None = vars(block).get(_PLACE)
    if place is None:
        yield block
        return
    with place.lock, torch.inference_mode(False):  # parameters that are made in it could not be used outside
        if place.users == 0:
            _adopt_(block, place.shelf.fetch(place.index), place)
        place.users += 1
    if ahead:
        place.shelf.read_ahead(place.index + ahead)
    try:
        yield block
    finally:
        with place.lock, torch.inference_mode(False):
            place.users -= 1
            if place.users == 0:
                _empty_(block)


@contextmanager
def final(block: nn.Module) -> Iterator[None]:
    """Inside this context a block may change although its tensors are in their files, because nobody will ask for them again."""
    place: _Place = vars(block)[_PLACE]
    place.final = True
    try:
        yield
    finally:
        place.final = False


def is_absent(model: nn.Module, name: str) -> bool:
    """Whether the module of that name is in a block whose tensors are in its files, where nothing can be put into it."""
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
    """Where the tensors of a block are, and how many contexts hold them in memory."""

    def __init__(self, shelf: "Shelf", index: int) -> None:
        self.shelf, self.index, self.users, self.lock = shelf, index, 0, Lock()
        self.final = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Place":
        """A copy of the block starts without tensors of its own."""
        return _Place(self.shelf, self.index)


class Shelf:
    """The decoder blocks of a model, in its files.

    Args:
        skeleton: the model on the meta device; it stays there.
        files: its safetensors files.
        device: where blocks are fetched to.
    """

    def __init__(self, skeleton: PreTrainedModel, files: Sequence[Path], device: torch.device) -> None:
        self._skeleton, self._device, self.files = skeleton, device, tuple(files)
        self._entry = architecture_of(skeleton.config)
        self._conversions: list[Any] = getattr(skeleton, "_weight_conversions", None) or []
        self._lock, self._ahead = Lock(), dict[int, Future[dict[str, Tensor]]]()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._blocks: list[dict[str, Path]] = [{} for _ in decoder_blocks(skeleton)]
        self.rest: dict[str, Path] = {}
        path, files_of = f"{path_of_blocks(skeleton)}.", where(files)
        for name, place in places(skeleton, files_of).items():
            if place is not None:
                inside = place.startswith(path)
                names = self._blocks[int(place.removeprefix(path).partition(".")[0])] if inside else self.rest
                names[name] = files_of[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shelf":
        """Copies of a model fetch from the same files."""
        return self

    def fetch(self, index: int) -> nn.Module:
        """A new block with its tensors on the device, as transformers builds it."""
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
        """Load these tensors of the files into a model, and return the names of those that it still lacks.

        Raises:
            InputError: they are not those that the model was opened with.
        """
        dtype = model.dtype
        given = LoadStateDictConfig(
            dtype=dtype,
            dtype_plan=model._get_dtype_plan(dtype),
            device_map={"": self._device},
            weight_mapping=self._conversions,
        )
        with _silent():
            found, _ = convert_and_load_state_dict_in_model(model, tensors or _tensors(names), given)
        wrong = sorted({*found.unexpected_keys, *(name for name, *_ in found.mismatched_keys)})
        if wrong or found.conversion_errors:
            path = next(iter(names.values()))
            raise InputError(
                f"{path.parent} no longer holds {wrong or sorted(found.conversion_errors)} as it did when the model was opened: "
                "the files were exchanged during the run; start again"
            )
        missing: set[str] = found.missing_keys
        return missing

    def apart(self, block: nn.Module, index: int) -> nn.Module:
        """The block with its fused layers taken apart."""
        return unfuse_block_(self._entry, self._skeleton.config, index, block)

    def _read(self, index: int) -> dict[str, Tensor]:
        return _tensors(self._blocks[index])


@contextmanager
def _silent() -> Iterator[None]:
    """No progress bar for each block; a bar takes as long as its tensors."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def where(files: Sequence[Path]) -> dict[str, Path]:
    """The file of every tensor; only headers are read.

    Raises:
        InputError: a file cannot be read.
    """
    found: dict[str, Path] = {}
    for path in files:
        with _opened(path) as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _tensors(names: dict[str, Path]) -> dict[str, Tensor]:
    """These tensors, read into memory of their own: pages of mapped files would count as the process's while they are open."""
    found: dict[str, Tensor] = {}
    for path in dict.fromkeys(names.values()):
        with _opened(path) as file:
            found |= {name: aligned(file.get_tensor(name)) for name, place in names.items() if place == path}
    return found


def aligned(tensor: Tensor) -> Tensor:
    """The tensor where torch would have allocated it: at a multiple of 64 bytes.

    Kernels round differently elsewhere, and where a tensor lies in a file is an accident of the other tensors' sizes.
    """
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): it was there when the model was opened; fetch it again"
        ) from error


def _adopt_(block: nn.Module, fresh: nn.Module, place: _Place) -> None:
    """Give a block the tensors of a fresh one, which is taken apart where the block is."""
    if block.state_dict().keys() != fresh.state_dict().keys():
        fresh = place.shelf.apart(fresh, place.index)
    wanted = {name: parameter.requires_grad for name, parameter in block.named_parameters()}
    block.load_state_dict(fresh.state_dict(), assign=True)
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(wanted[name])


def _empty_(block: nn.Module) -> None:
    """Take the tensors of a block away, whatever it has become."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                module._buffers[name] = buffer.to("meta")


class _OnDemand:
    """The forward of a shelved block outside `resident`. It holds the block weakly, or a model would outlive its last user in a cycle."""

    def __init__(self, block: nn.Module) -> None:
        self._block = ref(block)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_OnDemand":
        """That of the copy of the block."""
        return _OnDemand(memo[id(self._block())])

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        block = self._block()
        assert block is not None, "called by its block"
        with resident(block):
            return type(block).forward(block, *arguments, **named)
