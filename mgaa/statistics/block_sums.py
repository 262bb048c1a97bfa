"""Sums of one worker over a block, as a file to be merged with those of the other workers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mgaa.statistics.accumulate import CosineSum, Moments


@dataclass(frozen=True)
class BlockSums:
    """Sums of one worker over a block, to be merged with those of the other workers.

    Attributes:
        inputs: by the first linear that reads them; `None` where the share has no token (for an expert).
        cosines: by sublayer: cosines of the stream, and of the branch.
        shared, apart: as in `mgaa.statistics.statistics.BlockStatistics`.
    """

    inputs: dict[str, Moments | None]
    cosines: dict[str, tuple[CosineSum | None, CosineSum | None]]
    shared: dict[str, str]
    apart: dict[str, CosineSum | None] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write one safetensors file; scatters as their packed upper triangle."""
        tensors: dict[str, Tensor] = {}
        for key, moments in self.inputs.items():
            for each in fields(Moments) if moments is not None else ():
                value = getattr(moments, each.name)
                if each.name == "scatter":
                    value = value[tuple(torch.triu_indices(*value.shape))]
                tensors[f"{key}/{each.name}"] = torch.as_tensor(value).cpu().contiguous()
        notes = {
            "cosines": {name: [vars(each) for each in pair] for name, pair in self.cosines.items()},
            "inputs": list(self.inputs),
            "shared": self.shared,
            "apart": {name: None if each is None else vars(each) for name, each in self.apart.items()},
        }
        save_file(tensors, path, metadata={"notes": json.dumps(notes)})

    @staticmethod
    def load(path: Path, device: str = "cpu") -> "BlockSums":
        """Read what `save` wrote."""
        with safe_open(path, framework="pt", device=device) as file:
            notes = json.loads(file.metadata()["notes"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return BlockSums(
            {key: _unpack(key, tensors) if f"{key}/count" in tensors else None for key in notes["inputs"]},
            {name: (CosineSum(**stream), CosineSum(**branch)) for name, (stream, branch) in notes["cosines"].items()},
            notes["shared"],
            {name: None if each is None else CosineSum(**each) for name, each in notes["apart"].items()},
        )


def _unpack(key: str, tensors: Mapping[str, Tensor]) -> Moments:
    values = {each.name: tensors[f"{key}/{each.name}"] for each in fields(Moments)}
    width = len(values["mean"])
    scatter = values["scatter"].new_zeros(width, width)
    scatter[tuple(torch.triu_indices(width, width))] = values["scatter"]
    counts = values["group_counts"].cpu()
    return Moments(int(values["count"]), values["sums"], values["mean"], scatter, values["group_sums"], counts)
