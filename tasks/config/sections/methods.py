"""The sections of the method: what is measured, both levels, the factors, and what is done to them block by block."""

from typing import Annotated, Any, Literal

from pydantic import Field

from tasks.cache.stage import File
from tasks.config.sections.section import Compression, Method, Positive, Section


class Statistics(Section):
    """What is measured on the calibration data."""

    inputs: Literal["dense", "compressed"] = Field(
        description="whose activations are measured: those of the dense model, or those behind the compressed blocks before"
    )
    groups: Positive = Field(description="groups of sequences whose means are kept apart")
    batch_size: Positive = Field(default=8, description="sequences per forward pass of the calibration")
    shards: Literal[1, 2, 4, 8] = Field(default=1, description="workers that share the calibration sequences")
    expert_tokens: Annotated[float, Field(ge=0)] = Field(
        default=4.0, description="tokens per channel, below which the covariance of an expert is shrunk"
    )
    unreached: Literal["stop", "dense"] = Field(
        default="stop",
        description="experts that no calibration token reaches: stop is an error; dense keeps their matrices as they are",
    )
    gradients: bool = Field(
        default=False,
        description="second moments of the output gradients, by one backward pass; factors.method=kronecker needs them",
    )


class Factors(Method):
    """The factorizer: in which metric a matrix is cut to a rank."""


class Map(Method):
    """A map of level 1 without its target."""

    band: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="no sublayer's ratio departs from the compression by more; null: no bound"
    )


class Ratios(Map):
    """Level 1: how the compression is spread between sublayers."""

    compression: Compression = Field(description="fraction of the linear parameters to remove, between 0 and 1")


class Ranks(Method):
    """Level 2: how the ranks are chosen inside a sublayer."""

    multiple: Literal["auto"] | Positive = Field(default="auto", description="ranks are multiples of this number")
    objective: Literal["parameters", "latency"] = Field(
        default="parameters",
        description="parameters: a rank has fewer than the dense matrix; latency: it is also faster, by a profile of the device",
    )
    profile: str | None = Field(
        default=None, description="of latency: the file that flows.profile_device has written on the target device"
    )
    tokens: Positive | None = Field(
        default=None,
        description="of latency: tokens per call, at which ranks have to be faster; null: at each number of the profile",
    )
    device: str | None = Field(
        default=None, description="of latency: kind (cpu, cuda) or name that the profile's device must have; null: any"
    )

    @property
    def latency(self) -> dict[str, Any] | None:
        """What steps are told of the objective latency; null where parameters are the objective."""
        if self.objective == "parameters" or self.profile is None:
            return None
        return {"profile": File(self.profile), "tokens": self.tokens, "device": self.device}


class Anchor(Section):
    """Factors that are fitted to the dense model, block after block behind the compressed blocks before."""

    method: Literal["none", "outputs", "stream"] = Field(
        description="none: slices of decompositions on dense inputs; outputs: to what each matrix of the dense model gives; stream: and "
        "what writes to the residual stream, to that stream"
    )
    dense: bool = Field(default=True, description="whether matrices that stay dense are fitted, too")
    damping: Annotated[float, Field(gt=0)] = Field(
        default=1e-4, description="of the regression, relative to the mean square of an input channel"
    )

    @property
    def anchoring(self) -> dict[str, Any] | None:
        """Arguments of `mgaa.anchoring.anchoring.Anchoring`; null where nothing is anchored."""
        if self.method == "none":
            return None
        return {"stream": self.method == "stream", "dense": self.dense, "damping": self.damping}


class RefinementSection(Section):
    """Anchored blocks tuned to the dense model, one after the other, by some steps of Adam on the error of their outputs."""

    method: Literal["none", "adam"] = Field(description="none; or adam, without labels and with the calibration tokens")
    steps: Positive = Field(default=300, description="per block, one micro-batch of the calibration each")
    rate: Annotated[float, Field(gt=0)] = Field(
        default=0.06, description="of the first step, relative to the size of each tensor and to the error of the block"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of the order of the micro-batches")

    @property
    def refinement(self) -> dict[str, Any] | None:
        """Arguments of `mgaa.anchoring.refinement.Refinement`; null where nothing is tuned."""
        return None if self.method == "none" else self.model_dump(exclude={"method"})


class Channels(Section):
    """Pruning of the FFNs, in place of their factorization."""

    method: Literal["none", "weighted"] = Field(
        description="none: FFNs are factorized like everything else; weighted: their least important channels are removed"
    )
    keep_least: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01, description="share of the channels that is kept for being the least important"
    )
    multiple: Positive = Field(default=1, description="the kept width is a multiple of this number")

    @property
    def pruning(self) -> dict[str, Any] | None:
        """Arguments of `mgaa.allocation.channels.Pruning`; null where nothing is pruned."""
        return None if self.method == "none" else {"keep_least": self.keep_least, "multiple": self.multiple}
