"""The sections of models: the one that is compressed."""

from typing import Literal

from pydantic import Field

from tasks.config.sections.section import Section


class Backbone(Section):
    """The language model that is compressed."""

    source: str = Field(description="folder of a Hugging Face model, or its id on the Hub")
    revision: str | None = Field(description="commit on the Hub, 40 hexadecimal digits; null for a folder")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        description="dtype of the weights; auto: as stored"
    )
    device: str = Field(
        description="auto (a GPU if there is one), cpu, cuda or cuda:<number>", pattern=r"^(auto|cpu|cuda(:\d+)?)$"
    )
    stream: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="whether blocks stay in their files until they are needed; auto: where the model takes half of the free memory",
    )
    parts: list[Literal["decoder", "vision", "projector"]] = Field(
        default=["decoder"],
        min_length=1,
        description="what is compressed; of a model that sees also its vision tower, and the projector behind it",
    )
    hidden: Literal["auto", "device", "host", "disk"] = Field(
        default="auto", description="where the hidden states of all tokens wait between blocks; auto: as fits"
    )
