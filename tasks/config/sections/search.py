"""The sections `search`, `study` and `sensitivity`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.config.sections.section import Compression, Lists, Positive, Section


class Search(Section):
    """Ranks from trials on validation text, instead of both levels (Bolaco)."""

    method: Literal["none", "gp", "random"] = Field(
        description="none: use both levels; gp: Gaussian process with expected improvement; random: random allocations"
    )
    groups: Positive = Field(default=1, description="groups of consecutive blocks, each with shares of its own")
    dense: list[str] = Field(default=["v"], description="types of matrices that stay dense: qk, v, o, gate, up, down")
    least: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.2, description="smallest kept share of a matrix")
    evaluations: Positive = Field(default=50, description="trials")
    initial: Positive = Field(default=3, description="random trials before the Gaussian process is fitted")
    start: Literal["random", "mgaa"] = Field(
        default="random",
        description="first trial: random, or the closest point to the allocation of both levels",
    )
    batch: Positive = Field(default=1, description="trials proposed and measured at a time")
    divergence: Annotated[float, Field(ge=0)] = Field(
        default=1e-3, description="weight of the reverse KL divergence from the dense model, added to the perplexity"
    )
    windows: Positive = Field(default=100, description="validation windows of a trial")
    candidates: Positive = Field(default=200, description="validation windows to choose from")
    selection: Annotated[int, Field(ge=0)] = Field(
        default=20,
        description="random allocations whose perplexities select the windows; 0: take the first ones",
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the search")
    history: str | None = Field(
        default=None, description="results/search/search.json of an earlier search, whose trials are reused"
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
        """Whether windows are selected from candidates."""
        return self.selection > 0 and self.candidates > self.windows

    @property
    def space(self) -> dict[str, Any]:
        """Arguments of `mgaa.search.space_of` except the compression."""
        return {"groups": self.groups, "dense": self.dense, "least": self.least}


class Study(Lists):
    """Every combination of these lists, compared with random search and MGAA (flows.search)."""

    groups: list[Positive] = Field(min_length=1, description="groups of blocks")
    start: list[Literal["random", "mgaa"]] = Field(min_length=1, description="first trials")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="seeds")


class Sensitivity(Lists):
    """Every type of matrix compressed alone (flows.sensitivity)."""

    compression: list[Compression] = Field(min_length=1, description="fractions of the parameters of a type to remove")
