"""The section `backbone`."""

from typing import Literal

from pydantic import Field

from tasks.config.sections.section import Section


class Backbone(Section):
    """The model to compress."""

    source: str = Field(description="folder of a Hugging Face model, a GGUF file, or a Hub id")
    revision: str | None = Field(description="commit on the Hub, 40 hexadecimal digits; null for a folder")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        description="dtype of the weights; auto: as stored"
    )
    device: str = Field(
        description="auto (a GPU if there is one), cpu, cuda or cuda:<number>", pattern=r"^(auto|cpu|cuda(:\d+)?)$"
    )
    stream: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="load blocks from their files when they are needed; auto: if the model would take half of the free memory",
    )
    parts: list[Literal["decoder", "vision", "projector"]] = Field(
        default=["decoder"],
        min_length=1,
        description="what is compressed; of a vision-language model also the vision tower and the projector",
    )
    hidden: Literal["auto", "device", "host", "disk"] = Field(
        default="auto", description="where hidden states are kept between blocks; auto: wherever they fit"
    )
