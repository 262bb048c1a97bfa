"""The sections of searches: of ranks, of settings, and of what a number is sensitive to."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.config.sections.section import Compression, Lists, Positive, Section


class Search(Section):
    """Ranks by trials on validation text, in the place of both levels (Bolaco)."""

    method: Literal["none", "gp", "random"] = Field(
        description="none: both levels allocate; gp: a Gaussian process and expected improvement; random: random allocations"
    )
    groups: Positive = Field(default=1, description="groups of consecutive blocks with shares of their own")
    dense: list[str] = Field(default=["v"], description="types of matrices that stay dense: qk, v, o, gate, up, down")
    least: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.2, description="smallest kept share of a matrix")
    evaluations: Positive = Field(default=50, description="trials")
    initial: Positive = Field(
        default=3, description="random trials before the Gaussian process looks at what was found"
    )
    start: Literal["random", "mgaa"] = Field(
        default="random",
        description="the first trial: random, or the allocation of both levels, as near as the search can come to it",
    )
    batch: Positive = Field(default=1, description="trials that are proposed and measured at once")
    divergence: Annotated[float, Field(ge=0)] = Field(
        default=1e-3, description="weight of the reverse KL divergence from the dense model beside the perplexity"
    )
    windows: Positive = Field(default=100, description="validation windows of a trial")
    candidates: Positive = Field(default=200, description="validation windows to choose those from")
    selection: Annotated[int, Field(ge=0)] = Field(
        default=20,
        description="random allocations whose perplexity tells which windows to choose; 0: the first ones are taken",
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of the search")
    history: str | None = Field(
        default=None, description="results/search/search.json of an earlier search, to know its trials from the start"
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.selection and self.windows > self.candidates:
            raise ValueError(
                f"expected windows <= candidates, got windows {self.windows} and candidates {self.candidates}"
            )
        if self.selection == 1:
            raise ValueError("expected selection of 0 or at least 2, got 1: one allocation tells no windows apart")
        return self

    @property
    def selects(self) -> bool:
        """Whether windows are chosen among candidates."""
        return self.selection > 0 and self.candidates > self.windows

    @property
    def space(self) -> dict[str, Any]:
        """Arguments of `mgaa.search.space_of`, but for the compression."""
        return {"groups": self.groups, "dense": self.dense, "least": self.least}


class Study(Lists):
    """Every combination of these lists, each beside random search and MGAA (flows.search)."""

    groups: list[Positive] = Field(min_length=1, description="groups of blocks")
    start: list[Literal["random", "mgaa"]] = Field(min_length=1, description="first trials")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="seeds")


class Sensitivity(Lists):
    """Every type of matrix compressed alone (flows.sensitivity)."""

    compression: list[Compression] = Field(min_length=1, description="fractions of the parameters of a type to remove")
