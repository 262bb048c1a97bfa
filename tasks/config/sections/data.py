"""The section `data`: texts and questions, by what they are for."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.config.sections.section import Fraction, Positive, Section


class Texts(Section):
    """Documents, and how they are cut into sequences of tokens."""

    source: str = Field(
        description="demo, a file of text or of rows (jsonl, json, csv, tsv, parquet, arrow; packed or not), a folder of them, or an id of "
        "Hugging Face datasets"
    )
    split: str | None = Field(description="name of the split; null: every file of a folder")
    revision: str | None = Field(default=None, description="commit of a data set on the Hub, 40 hexadecimal digits")
    subset: str | None = Field(default=None, description="configuration of a data set on the Hub")
    field: str = Field(
        default="text",
        description="the field of a row that holds the text; of chats messages or conversations, unless set",
    )
    nulls: Literal["stop", "skip"] = Field(
        default="stop",
        description="rows without text (null, or no such field): stop, or skip them and count them in the card",
    )
    separator: str = Field(
        default="auto", description="where documents end: auto, none, markers, headings, paragraphs, lines, or a text"
    )
    from_: Fraction = Field(default=0.0, alias="from", description="first document, as a fraction of all in file order")
    to: Fraction = Field(default=1.0, description="end of the documents, as a fraction of all in file order")
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
    """The documents that choices are made on."""

    form: Literal["text", "chat"] = Field(default="text", description=f"text; or {CHAT}")


class CalibrationTexts(Texts):
    """What the statistics are measured on; of a model that sees it should be questions about images."""

    form: Literal["text", "chat", "questions"] = Field(
        default="text",
        description=f"text; {CHAT}; or questions about images: scenes that the demo draws, or a .jsonl of image, question and answer",
    )


class EvaluationTexts(ChosenTexts):
    """The documents that are read for the final numbers only."""

    stride: Positive | None = Field(default=None, description="tokens between windows; null: windows do not overlap")

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
    """What recovery is trained on; read only where there is one."""

    form: Literal["text", "chat", "instructions", "questions"] = Field(
        default="text",
        description=f"text; {CHAT}, all of which is scored; instructions: rows in the format of Alpaca; or questions about images, as of "
        "calibration",
    )


class Questions(Section):
    """A set of questions about images, with their answers."""

    name: str = Field(description="what the set is called in tables", pattern=r"^[a-z][a-z0-9_]*$")
    source: str = Field(description="scenes, which the demo draws, or a .jsonl of image, question and answer")
    split: str | None = Field(default=None, description="of the scenes: train, calibration, validation or test")
    from_: Fraction = Field(default=0.0, alias="from", description="first question, as a fraction of all in file order")
    to: Fraction = Field(default=1.0, description="end of the questions, as a fraction of all in file order")
    samples: Positive | None = Field(default=None, description="number of questions drawn; null: all, in order")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of the draw")


class Data(Section):
    """Three disjoint sets of text, to measure on, to choose on, and to report; what recovery is trained on; and questions about images."""

    calibration: CalibrationTexts = Field(description="what the statistics are measured on")
    validation: ChosenTexts = Field(description="what choices are made on")
    evaluation: EvaluationTexts = Field(description="what the reported perplexity is measured on")
    recovery: RecoveryTexts = Field(description="what recovery is trained on, apart from validation and evaluation")
    questions: list[Questions] = Field(
        default=[],
        description="sets of questions about images, which models that see are asked; apart from calibration",
    )

    @model_validator(mode="after")
    def _called(self) -> Self:
        names = [each.name for each in self.questions]
        if again := [name for index, name in enumerate(names) if name in names[:index]]:
            raise ValueError(f"expected questions with names that differ, got {again[0]} twice")
        return self
