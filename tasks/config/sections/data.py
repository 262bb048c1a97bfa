"""The section `data`: texts and questions by purpose."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.config.sections.section import Fraction, Positive, Section


class Texts(Section):
    """Documents, and how they are cut into token sequences."""

    source: str = Field(
        description="demo, a file of text or of rows (jsonl, json, csv, tsv, parquet, arrow; packed or not), a folder of them, or the id "
        "of a Hugging Face dataset"
    )
    split: str | None = Field(description="name of the split; null: every file of a folder")
    revision: str | None = Field(default=None, description="commit of a dataset on the Hub, 40 hexadecimal digits")
    subset: str | None = Field(default=None, description="configuration of a dataset on the Hub")
    field: str = Field(
        default="text",
        description="field of a row with the text; for chats messages or conversations by default",
    )
    nulls: Literal["stop", "skip"] = Field(
        default="stop",
        description="rows without text (null, or no such field): stop with an error, or skip and count them in the card",
    )
    separator: str = Field(
        default="auto",
        description="what separates documents: auto, none, markers, headings, paragraphs, lines, or a string",
    )
    from_: Fraction = Field(
        default=0.0, alias="from", description="start, as a fraction of the documents in file order"
    )
    to: Fraction = Field(default=1.0, description="end, as a fraction of the documents in file order")
    samples: Positive | None = Field(default=None, description="number of sequences drawn; null: all, in order")
    length: Annotated[int, Field(ge=2)] = Field(description="tokens per sequence of text")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the draw")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.from_ >= self.to:
            raise ValueError(f"expected from < to, got from {self.from_} to {self.to}")
        return self

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if getattr(self, "form", None) == "chat" and self.separator != "auto":
            raise ValueError(
                f"expected separator: auto with form: chat, got {self.separator!r}: every conversation is a document"
            )
        return self


CHAT = "chat: rows of messages (role and content), by the model's chat template"


class ChosenTexts(Texts):
    """Documents for choices."""

    form: Literal["text", "chat"] = Field(default="text", description=f"text; or {CHAT}")


class CalibrationTexts(Texts):
    """Calibration data; for a vision-language model it should be questions about images."""

    form: Literal["text", "chat", "questions"] = Field(
        default="text",
        description=f"text; {CHAT}; or questions about images: scenes drawn by the demo, or a .jsonl of image, question and answer",
    )


RULES = ("none", "markers", "headings", "paragraphs", "lines")
"""Values of `separator` that are no separators themselves."""


class EvaluationTexts(ChosenTexts):
    """Documents for the reported numbers only."""

    stride: Positive | None = Field(default=None, description="tokens between windows; null: windows do not overlap")
    protocol: Literal["wikitext2", "ptb", "c4"] | None = Field(
        default=None,
        description="how published perplexities on this data set are taken: its rows joined as they are, whole windows of 2048 tokens back "
        "to back unless another length is stated (docs/data.md); null: packed documents",
    )

    @model_validator(mode="after")
    def _joined(self) -> Self:
        if self.protocol is not None and self.separator in RULES:
            raise ValueError(
                f"expected separator: auto or what joins the rows, with protocol {self.protocol}, got {self.separator!r}, which finds "
                "documents in a text"
            )
        return self

    @model_validator(mode="after")
    def _covered(self) -> Self:
        if self.stride is not None and self.stride > self.length:
            raise ValueError(f"expected stride <= length, got stride {self.stride} and length {self.length}")
        if self.stride not in (None, self.length) and self.samples is not None:
            raise ValueError(
                f"expected samples: null with stride {self.stride}, got samples {self.samples}: windows that overlap need the whole "
                "text, not sequences drawn from it"
            )
        return self


class RecoveryTexts(Texts):
    """Training data of recovery, read only if there is one."""

    form: Literal["text", "chat", "instructions", "questions"] = Field(
        default="text",
        description=f"text; {CHAT}, all of which is scored; instructions: rows in the format of Alpaca; or questions about images, as for "
        "calibration",
    )


class Questions(Section):
    """A set of questions about images, with their answers."""

    name: str = Field(description="name of the set in tables", pattern=r"^[a-z][a-z0-9_]*$")
    source: str = Field(description="scenes, drawn by the demo, or a .jsonl of image, question and answer")
    split: str | None = Field(default=None, description="split of the scenes: train, calibration, validation or test")
    from_: Fraction = Field(
        default=0.0, alias="from", description="start, as a fraction of the questions in file order"
    )
    to: Fraction = Field(default=1.0, description="end, as a fraction of the questions in file order")
    samples: Positive | None = Field(default=None, description="number of questions drawn; null: all, in order")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the draw")


class Data(Section):
    """Disjoint texts for calibration, validation and evaluation; training data of recovery; and questions about images."""

    calibration: CalibrationTexts = Field(description="data for the statistics")
    validation: ChosenTexts = Field(description="data for choices")
    evaluation: EvaluationTexts = Field(description="data for the reported perplexity")
    recovery: RecoveryTexts = Field(description="training data of recovery, disjoint from validation and evaluation")
    questions: list[Questions] = Field(
        default=[],
        description="sets of questions about images for vision-language models, disjoint from calibration",
    )

    @model_validator(mode="after")
    def _called(self) -> Self:
        names = [each.name for each in self.questions]
        if again := [name for index, name in enumerate(names) if name in names[:index]]:
            raise ValueError(f"expected questions with names that differ, got {again[0]} twice")
        return self
