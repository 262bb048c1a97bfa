"""The section `recovery`: training after compression."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tasks.config.sections.section import Positive, Section


class Recovery(Section):
    """What is done after compression to win back quality."""

    method: Literal["none", "lora", "diagonals"] = Field(
        description="none: the compressed model is final; lora: all linears are tuned by LoRA, which is folded into the weights; "
        "diagonals: the leading directions of the low-rank ones are scaled, at equal budget (Bolaco)"
    )
    tune: Literal["product", "factors"] = Field(
        default="product",
        description="of lora: product: low-rank layers as a whole, whose ranks rise by that of LoRA; factors: A and B, at equal budget",
    )
    epochs: Annotated[float, Field(gt=0)] = Field(default=2.0, description="passes over the examples")
    steps: Positive | None = Field(default=None, description="optimizer steps in place of epochs; null: epochs")
    rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="highest learning rate; null: 1e-4 for lora, 1e-2 for diagonals"
    )
    batch: Positive = Field(default=64, description="sequences per optimizer step")
    micro_batch: Positive = Field(default=4, description="sequences per forward pass; the rest is accumulated")
    rank: Positive | None = Field(
        default=None,
        description="of the updates, or of diagonals the number of directions; null: 8 for lora, 64 for diagonals",
    )
    alpha: Positive = Field(default=16, description="of lora: the updates are scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.05, description="of what enters the updates")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.06, description="share of the steps with a rising rate"
    )
    decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight decay")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the arithmetic"
    )
    evaluate_every: Positive = Field(default=100, description="steps between validations, each with a checkpoint")
    patience: Positive | None = Field(
        default=None, description="validations without a new best before training stops; null: never"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of the updates, the order and the dropout")
    processes: Positive = Field(default=1, description="how many share a batch, one per GPU")

    @property
    def plan(self) -> dict[str, Any]:
        """Arguments of `mgaa.recovery.Plan`, where there is a method; what is null has the value of its published code."""
        published = {"rate": 1e-2, "rank": 64} if self.method == "diagonals" else {"rate": 1e-4, "rank": 8}
        return {name: published[name] if value is None and name in published else value for name, value in self}
