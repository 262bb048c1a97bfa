"""The section `sweep`."""

from typing import Literal

from pydantic import Field

from tasks.config.sections.methods import Factors, Map, Ranks
from tasks.config.sections.section import Compression, Lists, Section


class Source(Section):
    """A backbone of a sweep."""

    source: str = Field(description="folder of a Hugging Face model, or its Hub id")
    revision: str | None = Field(default=None, description="commit on the Hub, 40 hexadecimal digits")


class Sweep(Lists):
    """Every combination of these lists; null: only the section of that name (flows.sweep)."""

    backbone: list[Source] = Field(min_length=1, description="models: folders, or {source: id, revision: commit}")
    factors: list[Factors] = Field(min_length=1, description="factorizers: names, or mappings with options")
    ratios: list[Map] = Field(min_length=1, description="maps of level 1: names, or mappings with options and band")
    ranks: list[Ranks] = Field(
        min_length=1, description="rules of level 2: names, or mappings with options and multiple"
    )
    compression: list[Compression] = Field(min_length=1, description="fractions of the linear parameters to remove")
    split: Literal["evaluation", "validation"] = Field(
        default="evaluation", description="texts to measure on; validation if the numbers are used to choose"
    )
