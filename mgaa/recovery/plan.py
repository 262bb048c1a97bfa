"""Plan of a recovery: one frozen record, the only input of a result besides the model and the texts.

The defaults are those of LoRAP (arXiv 2404.09695, 4.1 and its code, a descendant of LLM-Pruner's `post_training.py`): LoRA of rank 8 on
every linear, two epochs, rate 1e-4, 64 sequences per step. Choices that the paper leaves open are ours and marked [D]. Bolaco's code (arXiv
2405.10616) is `Plan(method="diagonals", rank=64, rate=1e-2, micro_batch=8)`.

Batches: every epoch is a new order of all examples, the epochs are concatenated, and the sequence is cut into batches. So each step has
    exactly `batch` sequences, regardless of the number of processes and of sequences per forward pass.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Int
from torch import Tensor

from mgaa.errors import UsageError

METHODS = ("lora", "diagonals")
WAYS = ("product", "factors")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of training: the adapters, its length and its arithmetic.

    Attributes:
        method: `lora` adds a low-rank update to every linear (`mgaa.recovery.lora`); `diagonals` scales the leading directions of the
            low-rank ones, and leaves all others unchanged (`mgaa.recovery.diagonals`).
        tune: for LoRA only; `product` trains `B A` as a whole, and the rank of the update is added; `factors` trains `A` and `B`, and every
            rank stays.
        epochs: passes over the examples; overridden by `steps`.
        rate: the highest learning rate: linear warm-up, then linear decay to zero.
        batch: sequences per optimizer step, over all processes.
        micro_batch: sequences per forward pass; the gradients of a batch are accumulated.
        rank: of the update of LoRA; with diagonals the number of leading directions, at most the rank of the layer.
        alpha: for LoRA only, whose update is `alpha / rank * B A`.
        dropout: on the input of the update.
        warmup: share of the steps [D]: LoRAP's code has 100 steps, which are this share of its run.
        decay: of the weights (AdamW); 0 as in LoRAP's code.
        precision: see `mgaa.recovery.precision`.
        evaluate_every: steps between validations, each of which is followed by a checkpoint.
        patience: validations in a row without a new best before training stops [D]; None for never.
        processes: number of processes that share a batch; more than one are started by `mgaa.recovery.processes`.
    """

    method: str = "lora"
    tune: str = "product"
    epochs: float = 2.0
    steps: int | None = None
    rate: float = 1e-4
    batch: int = 64
    micro_batch: int = 4
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    warmup: float = 0.06
    decay: float = 0.0
    precision: str = "auto"
    evaluate_every: int = 100
    patience: int | None = None
    seed: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that cannot run.

        Raises:
            UsageError: a value is out of range, or the batch does not divide into micro-batches of all processes.
        """
        for name, known in (("method", METHODS), ("tune", WAYS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise UsageError(f"recovery.{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in ("batch", "micro_batch", "rank", "alpha", "evaluate_every", "processes", "steps", "patience"):
            value = getattr(self, name)
            optional = name in ("steps", "patience")
            if not (optional and value is None) and (not _is_whole(value) or value < 1):
                raise UsageError(
                    f"recovery.{name} is {value!r}, expected a whole number from 1" + " or null" * optional
                )
        for name in ("epochs", "rate", "dropout", "warmup", "decay"):
            if not isinstance(getattr(self, name), int | float):
                raise UsageError(f"recovery.{name} is {getattr(self, name)!r}, expected a number")
        for name in ("epochs", "rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"recovery.{name} is {getattr(self, name)!r}, expected a number above 0")
        if not _is_whole(self.seed) or self.seed < 0:
            raise UsageError(f"recovery.seed is {self.seed!r}, expected a whole number from 0")
        if not (0 <= self.dropout < 1 and 0 <= self.warmup < 1 and 0 <= self.decay < float("inf")):
            raise UsageError(
                f"recovery has dropout {self.dropout}, warmup {self.warmup} and decay {self.decay}: "
                "expected the first two in [0, 1) and the last from 0"
            )
        if self.batch % (self.micro_batch * self.processes):
            raise UsageError(
                f"recovery.batch is {self.batch}, which does not divide into {self.processes} processes x "
                f"{self.micro_batch} sequences (micro_batch): change one of the three"
            )

    @property
    def scale(self) -> float:
        """Factor of LoRA's update, `alpha / rank`."""
        return self.alpha / self.rank

    @property
    def accumulation(self) -> int:
        """Forward passes of one process per optimizer step."""
        return self.batch // (self.micro_batch * self.processes)

    def total(self, examples: int) -> int:
        """Return the number of optimizer steps on that many examples, at least one."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * examples / self.batch))

    def order(self, examples: int) -> Int[Tensor, " s"]:
        """Return the order of the examples: `total * batch` indices, from epochs of all examples in random order."""
        generator = torch.Generator().manual_seed(self.seed)
        needed = self.total(examples) * self.batch
        epochs = [torch.randperm(examples, generator=generator) for _ in range(-(-needed // examples))]
        return torch.cat(epochs)[:needed]

    def differences(self, other: "Plan") -> list[str]:
        """Describe the differences between this plan, here, and an existing one, there, in words."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return [f"{name} {there!r} there, {here!r} here" for name, here, there in pairs if here != there]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
