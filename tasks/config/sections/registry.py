"""The section `registry` of `params.yaml`: under which name a run offers its checkpoint, and what a champion must keep to."""

from typing import Annotated

from pydantic import Field

from tasks.config.sections.section import Section

Factor = Annotated[float, Field(gt=0)]


class Gate(Section):
    """What a version must keep to before it becomes the champion; null is no bound."""

    perplexity: Factor | None = Field(default=None, description="at most so many times that of the dense model")
    model_compression: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="at least this fraction of the parameters of the whole model is gone"
    )
    accuracy: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None,
        description="at most so many points of 100 below the dense model, on every task and set of questions",
    )
    champion: Factor | None = Field(
        default=None, description="perplexity at most so many times that of the present champion, at no more bytes"
    )


class Registry(Section):
    """MLflow's registry of models."""

    model: str | None = Field(
        default=None,
        description="name under which a run registers its checkpoint as candidate; null: it registers none",
        pattern=r"^[^/:.%\"']+$",
    )
    gate: Gate = Field(default=Gate(), description="what a version must keep to before it becomes the champion")
