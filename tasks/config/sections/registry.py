"""The section `registry`: the name under which runs register checkpoints, and the gate of a champion."""

from typing import Annotated

from pydantic import Field

from tasks.config.sections.section import Section

Factor = Annotated[float, Field(gt=0)]


class Gate(Section):
    """Bounds that a version must meet to become the champion; null: no bound."""

    perplexity: Factor | None = Field(default=None, description="perplexity relative to the dense model, at most")
    model_compression: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="fraction of all parameters of the model removed, at least"
    )
    accuracy: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None,
        description="points (of 100) below the dense model on any task or set of questions, at most",
    )
    champion: Factor | None = Field(
        default=None, description="perplexity relative to the current champion, at most, at no more bytes"
    )


class Registry(Section):
    """MLflow's model registry."""

    model: str | None = Field(
        default=None,
        description="name under which runs register their checkpoints as candidates; null: none",
        pattern=r"^[^/:.%\"']+$",
    )
    gate: Gate = Field(default=Gate(), description="bounds that a version must meet to become the champion")
