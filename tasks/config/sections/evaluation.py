"""The sections `evaluation` and `output`."""

from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.config.sections.section import Positive, Section


class Samples(Section):
    """Continuations of a few evaluation texts, for people to read."""

    number: Annotated[int, Field(ge=0)] = Field(default=4, description="number of texts; 0: none")
    prompt: Positive = Field(default=32, description="tokens of a prompt, at most")
    tokens: Positive = Field(default=40, description="tokens of a continuation, at most")
    prompts: list[str] = Field(default=[], description="texts of your own to go on with, shown with the results")
    chats: list[str] = Field(default=[], description="questions of your own, asked through the chat template")


class Evaluation(Section):
    """Baselines, tasks and settings of the evaluation."""

    baselines: list[Literal["uniform", "level1", "level2", "mgaa", "random"]] = Field(
        description="models to compare with at the same parameter count; mgaa, random: only with a search"
    )
    tasks: list[str] = Field(description="zero-shot tasks by lm-eval name")
    tasks_folder: str | None = Field(
        default=None,
        description="items of the standard tasks: a folder with <task>.jsonl, or hub, from where they are downloaded once",
    )
    limit: Positive | None = Field(default=None, description="examples per task; null: all")
    add_bos_token: bool | None = Field(
        default=None,
        description="whether contexts of zero-shot tasks begin with the beginning mark; null: as in lm-eval, where the tokenizer itself "
        "adds it (last_word and continuation: wherever it has one)",
    )
    batch_size: Positive = Field(description="sequences per forward pass")
    answer_tokens: Positive = Field(default=16, description="tokens of an answer to a question about an image, at most")
    samples: Samples = Field(default_factory=Samples, description="continuations of evaluation texts")


class Output(Section):
    """Where a run publishes its results, below the folder of the parameters."""

    results: str = Field(default="results", description="folder of metrics, allocations, figures and plots")
    checkpoint: str = Field(default="models/compressed", description="folder of the compressed model")
    beside: list[str] = Field(
        default=[],
        description="flows.show only: folders of the results of other runs on the same texts, whose methods come into the same table",
    )

    @model_validator(mode="after")
    def _below(self) -> Self:
        for name, value in (("results", self.results), ("checkpoint", self.checkpoint)):
            if PurePath(value).is_absolute() or ".." in PurePath(value).parts or not PurePath(value).parts:
                raise ValueError(f"expected {name} to be a folder below that of the parameters, got {value}")
        return self
