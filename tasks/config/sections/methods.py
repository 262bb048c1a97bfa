"""The sections of the compression method: statistics, factors, both levels, anchoring, refinement and pruning."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tasks.cache.stage import File
from tasks.config.sections.section import Compression, Method, Positive, Section


class Statistics(Section):
    """Statistics of the calibration data."""

    inputs: Literal["dense", "compressed"] = Field(
        description="activations of the dense model, or block by block those after the compressed blocks before"
    )
    groups: Positive = Field(description="groups of sequences, each with a mean of its own")
    batch_size: Positive = Field(default=8, description="sequences per forward pass of the calibration")
    shards: Literal[1, 2, 4, 8] = Field(default=1, description="parts of the calibration, measured in parallel")
    expert_tokens: Annotated[float, Field(ge=0)] = Field(
        default=4.0, description="tokens per channel below which the covariance of an expert is shrunk"
    )
    unreached: Literal["stop", "dense"] = Field(
        default="stop",
        description="experts that no calibration token reaches: stop with an error, or leave their matrices dense",
    )
    gradients: bool = Field(
        default=False,
        description="second moments of output gradients, from one backward pass; factors.method=kronecker needs them",
    )


class Factors(Method):
    """The factorizer: the metric in which matrices are truncated."""


class Map(Method):
    """A map of level 1 without its compression."""

    band: Literal["auto"] | Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="largest deviation of a sublayer's ratio from the compression; auto: 0.1 up to 8 blocks, 1/80 for each further one; "
        "null: no bound",
    )
    residual: bool = Field(
        default=True,
        description="cosine of the residual stream before and after a sublayer; false: of the stream before it and what it adds",
    )


class Ratios(Map):
    """Level 1: distribution of the compression between sublayers."""

    compression: Compression = Field(description="fraction of the linear parameters to remove, between 0 and 1")


class Ranks(Method):
    """Level 2: ranks inside a sublayer."""

    multiple: Literal["auto"] | Positive = Field(default="auto", description="ranks are multiples of this number")
    spectrum: Literal["metric", "plain"] = Field(
        default="metric",
        description="energies that rules compare: in the metric of the factorizer; plain: of the weight alone, its squared singular values",
    )
    objective: Literal["parameters", "latency"] = Field(
        default="parameters",
        description="parameters: low rank has fewer than the dense matrix; latency: it is also faster by a profile of the device",
    )
    profile: str | None = Field(
        default=None, description="latency only: file written by flows.profile_device on the target device"
    )
    tokens: Positive | None = Field(
        default=None,
        description="latency only: tokens per call at which ranks must be faster; null: all of the profile",
    )
    device: str | None = Field(
        default=None, description="latency only: required device of the profile, by kind (cpu, cuda) or name; null: any"
    )

    @property
    def latency(self) -> dict[str, Any] | None:
        """Arguments of steps for the objective latency; null for parameters."""
        if self.objective == "parameters" or self.profile is None:
            return None
        return {"profile": File(self.profile), "tokens": self.tokens, "device": self.device}


class Anchor(Section):
    """Factors fitted to the dense model, block by block, after the compressed blocks before."""

    method: Literal["none", "outputs", "stream"] = Field(
        description="none: slices of decompositions on dense inputs; outputs: fit the output of every matrix; stream: fit o and down "
        "to the residual stream instead"
    )
    dense: bool = Field(default=True, description="also fit matrices that stay dense")
    damping: Annotated[float, Field(gt=0)] = Field(
        default=1e-4, description="damping of the regression, relative to the mean square of an input channel"
    )

    @property
    def anchoring(self) -> dict[str, Any] | None:
        """Arguments of `mgaa.anchoring.anchoring.Anchoring`; null without anchoring."""
        if self.method == "none":
            return None
        return {"stream": self.method == "stream", "dense": self.dense, "damping": self.damping}


class RefinementSection(Section):
    """Tuning of anchored blocks, one by one, by Adam on their output error."""

    method: Literal["none", "adam"] = Field(description="none, or adam on the calibration tokens, without labels")
    steps: Positive = Field(default=300, description="steps per block, one micro-batch of the calibration each")
    rate: Annotated[float, Field(gt=0)] = Field(
        default=0.06,
        description="initial learning rate, relative to the size of each tensor and to the error of the block",
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the order of micro-batches")

    @property
    def refinement(self) -> dict[str, Any] | None:
        """Arguments of `mgaa.anchoring.refinement.Refinement`; null without refinement."""
        return None if self.method == "none" else self.model_dump(exclude={"method"})


class Channels(Section):
    """Pruning of FFNs, instead of factorization."""

    method: Literal["none", "weighted"] = Field(
        description="none: FFNs are factorized like everything else; weighted: their least important channels are removed"
    )
    keep_least: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01, description="share of the least important channels to keep"
    )
    multiple: Positive = Field(default=1, description="widths are multiples of this number")

    @property
    def pruning(self) -> dict[str, Any] | None:
        """Arguments of `mgaa.allocation.channels.Pruning`; null without pruning."""
        return None if self.method == "none" else {"keep_least": self.keep_least, "multiple": self.multiple}
