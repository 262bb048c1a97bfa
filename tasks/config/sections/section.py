"""Base classes of the sections of `params.yaml`, and types of their fields."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mgaa.masking import mask_values

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Compression = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of `params.yaml`: unknown keys, wrong types, non-finite numbers and empty strings are refused.

    Its JSON, in which Prefect keeps the parameters of a flow run, is without secrets.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True, str_min_length=1
    )

    @model_serializer(mode="wrap", when_used="json")
    def _without_secrets(self, values: SerializerFunctionWrapHandler) -> dict[str, Any]:
        shown: dict[str, Any] = mask_values(values(self))
        return shown


class Lists(Section):
    """A section of lists without repeated entries."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name, entries in self:
            for index, entry in enumerate(entries if isinstance(entries, list) else ()):
                if (first := entries.index(entry)) < index:
                    raise ValueError(
                        f"{name}.{index} is {name}.{first} again, expected entries that differ: leave one out"
                    )
        return self


class Method(Section):
    """A section that selects a method, with the options of that method."""

    method: str = Field(description="one of the files in the section's folder")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the method")
