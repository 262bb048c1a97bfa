"""The section `recovery`: training after compression."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tasks.config.sections.section import Positive, Section


class Recovery(Section):
    """Training after compression, to regain quality."""

    method: Literal["none", "lora", "diagonals"] = Field(
        description="none; lora: LoRA on all linear layers, merged into the weights; diagonals: scale the leading directions of "
        "low-rank layers, at the same budget (Bolaco)"
    )
    tune: Literal["product", "factors"] = Field(
        default="product",
        description="lora only: product: low-rank layers as a whole, with ranks raised by that of LoRA; factors: A and B, same budget",
    )
    epochs: Annotated[float, Field(gt=0)] = Field(default=2.0, description="passes over the examples")
    steps: Positive | None = Field(default=None, description="optimizer steps instead of epochs; null: epochs")
    rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="peak learning rate; null: 1e-4 for lora, 1e-2 for diagonals"
    )
    batch: Positive = Field(default=64, description="sequences per optimizer step")
    micro_batch: Positive = Field(default=4, description="sequences per forward pass; the rest is accumulated")
    rank: Positive | None = Field(
        default=None,
        description="rank of LoRA, or number of directions of diagonals; null: 8 for lora, 64 for diagonals",
    )
    alpha: Positive = Field(default=16, description="lora only: updates are scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.05, description="dropout of the inputs of updates")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.06, description="fraction of steps with a rising rate"
    )
    decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight decay")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="precision of training"
    )
    evaluate_every: Positive = Field(default=100, description="steps between validations with a checkpoint")
    patience: Positive | None = Field(
        default=None, description="validations without improvement before training stops; null: never"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of updates, order and dropout")
    processes: Positive = Field(default=1, description="processes that share a batch, one per GPU")

    @property
    def plan(self) -> dict[str, Any]:
        """Arguments of `mgaa.recovery.Plan`; nulls become the values of the published code."""
        published = {"rate": 1e-2, "rank": 64} if self.method == "diagonals" else {"rate": 1e-4, "rank": 8}
        return {name: published[name] if value is None and name in published else value for name, value in self}
