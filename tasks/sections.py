"""The sections of `params.yaml`, one per stage, in the order of the run.

Every field says what it means, so that `--help` and the error messages are written from the model alone (tasks/explain.py). A section
that selects a method also holds that method's options (tasks/options.py); the lists of a sweep hold many such sections (tasks/choices.py).
"""

from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.stage import File

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Compression = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of `params.yaml`: unknown keys, wrong types and non-finite numbers are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True)


class Lists(Section):
    """A section of lists, of which no entry comes twice."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name, entries in self:
            for index, entry in enumerate(entries if isinstance(entries, list) else ()):
                if (first := entries.index(entry)) < index:
                    raise ValueError(
                        f"{name}.{index} is {name}.{first} again, expected entries that differ: leave one out"
                    )
        return self


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


class Texts(Section):
    """Documents, and how they are cut into sequences of tokens."""

    source: str = Field(description="demo, a file (text or jsonl), a folder, or an id of Hugging Face datasets")
    split: str | None = Field(description="name of the split; null: every file of a folder")
    revision: str | None = Field(default=None, description="commit of a data set on the Hub, 40 hexadecimal digits")
    subset: str | None = Field(default=None, description="configuration of a data set on the Hub")
    field: str = Field(default="text", description="the field that holds the text, in jsonl and data sets")
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


class CalibrationTexts(Texts):
    """What the statistics are measured on; of a model that sees it should be questions about images."""

    form: Literal["text", "questions"] = Field(
        default="text",
        description="text; or questions about images: scenes that the demo draws, or a .jsonl of image, question and answer",
    )


class EvaluationTexts(Texts):
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

    form: Literal["text", "instructions", "questions"] = Field(
        default="text",
        description="text; instructions: a .json or .jsonl file in the format of Alpaca; or questions about images, as of calibration",
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
    validation: Texts = Field(description="what choices are made on")
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


class Statistics(Section):
    """What is measured on the calibration data."""

    inputs: Literal["dense", "compressed"] = Field(
        description="whose activations are measured: those of the dense model, or those behind the compressed blocks before"
    )
    groups: Positive = Field(description="groups of sequences whose means are kept apart")
    batch_size: Positive = Field(default=8, description="sequences per forward pass of the calibration")
    shards: Literal[1, 2, 4, 8] = Field(default=1, description="workers that share the calibration sequences")
    expert_tokens: Annotated[float, Field(ge=0)] = Field(
        default=4.0, description="tokens per channel, below which the covariance of an expert is shrunk"
    )
    gradients: bool = Field(
        default=False,
        description="second moments of the output gradients, by one backward pass; factors.method=kronecker needs them",
    )

    @model_validator(mode="after")
    def _shared(self) -> Self:
        if self.shards > 1 and self.inputs == "compressed":
            raise ValueError(
                f"expected shards: 1 with inputs: compressed, got {self.shards}: each block waits for the one before it"
            )
        if self.gradients and self.inputs == "compressed":
            raise ValueError(
                "expected gradients: false with inputs: compressed, got true: they are those of the dense model's loss; set inputs: dense"
            )
        return self


class Method(Section):
    """A section that selects a method, with the options of that method."""

    method: str = Field(description="one of the files in the section's folder")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the method")


class Factors(Method):
    """The factorizer: in which metric a matrix is cut to a rank."""


class Map(Method):
    """A map of level 1 without its target."""

    band: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="no sublayer's ratio departs from the compression by more; null: no bound"
    )


class Ratios(Map):
    """Level 1: how the compression is spread between sublayers."""

    compression: Compression = Field(description="fraction of the linear parameters to remove, between 0 and 1")


class Ranks(Method):
    """Level 2: how the ranks are chosen inside a sublayer."""

    multiple: Literal["auto"] | Positive = Field(default="auto", description="ranks are multiples of this number")
    objective: Literal["parameters", "latency"] = Field(
        default="parameters",
        description="parameters: a rank has fewer than the dense matrix; latency: it is also faster, by a profile of the device",
    )
    profile: str | None = Field(
        default=None, description="of latency: the file that flows.profile_device has written on the target device"
    )
    tokens: Positive | None = Field(
        default=None,
        description="of latency: tokens per call, at which ranks have to be faster; null: at each number of the profile",
    )
    device: str | None = Field(
        default=None, description="of latency: kind (cpu, cuda) or name that the profile's device must have; null: any"
    )

    @model_validator(mode="after")
    def _profiled(self) -> Self:
        if self.objective == "latency" and self.profile is None:
            raise ValueError(
                "expected a profile with objective latency, got none: measure the device by `python -m flows.profile_device`, and give "
                "ranks.profile=results/latency.json"
            )
        return self

    @property
    def latency(self) -> dict[str, Any] | None:
        """What steps are told of the objective latency; null where parameters are the objective."""
        if self.objective == "parameters" or self.profile is None:
            return None
        return {"profile": File(self.profile), "tokens": self.tokens, "device": self.device}


class Anchor(Section):
    """Factors that are fitted to the dense model, block after block behind the compressed blocks before."""

    method: Literal["none", "outputs", "stream"] = Field(
        description="none: slices of decompositions on dense inputs; outputs: to what each matrix of the dense model gives; stream: and "
        "what writes to the residual stream, to that stream"
    )
    dense: bool = Field(default=True, description="whether matrices that stay dense are fitted, too")
    damping: Annotated[float, Field(gt=0)] = Field(
        default=1e-4, description="of the regression, relative to the mean square of an input channel"
    )

    @property
    def anchoring(self) -> dict[str, Any] | None:
        """Arguments of `mgaa.anchoring.Anchoring`; null where nothing is anchored."""
        if self.method == "none":
            return None
        return {"stream": self.method == "stream", "dense": self.dense, "damping": self.damping}


class RefinementSection(Section):
    """Anchored blocks tuned to the dense model, one after the other, by some steps of Adam on the error of their outputs."""

    method: Literal["none", "adam"] = Field(description="none; or adam, without labels and with the calibration tokens")
    steps: Positive = Field(default=300, description="per block, one micro-batch of the calibration each")
    rate: Annotated[float, Field(gt=0)] = Field(
        default=0.06, description="of the first step, relative to the size of each tensor and to the error of the block"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of the order of the micro-batches")

    @property
    def refinement(self) -> dict[str, Any] | None:
        """Arguments of `mgaa.refinement.Refinement`; null where nothing is tuned."""
        return None if self.method == "none" else self.model_dump(exclude={"method"})


class Channels(Section):
    """Pruning of the FFNs, in place of their factorization."""

    method: Literal["none", "weighted"] = Field(
        description="none: FFNs are factorized like everything else; weighted: their least important channels are removed"
    )
    keep_least: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01, description="share of the channels that is kept for being the least important"
    )
    multiple: Positive = Field(default=1, description="the kept width is a multiple of this number")

    @property
    def pruning(self) -> dict[str, Any] | None:
        """Arguments of `mgaa.channels.Pruning`; null where nothing is pruned."""
        return None if self.method == "none" else {"keep_least": self.keep_least, "multiple": self.multiple}


class Search(Section):
    """Ranks by trials on validation text, in the place of both levels (Bolaco)."""

    method: Literal["none", "gp", "random"] = Field(
        description="none: both levels allocate; gp: a Gaussian process and expected improvement; random: random allocations"
    )
    groups: Positive = Field(default=1, description="groups of consecutive blocks with shares of their own")
    dense: list[str] = Field(default=["v"], description="types of matrices that stay dense: qk, v, o, gate, up, down")
    least: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.2, description="smallest kept share of a matrix")
    evaluations: Positive = Field(default=50, description="trials")
    initial: Positive = Field(
        default=3, description="random trials before the Gaussian process looks at what was found"
    )
    start: Literal["random", "mgaa"] = Field(
        default="random",
        description="the first trial: random, or the allocation of both levels, as near as the search can come to it",
    )
    batch: Positive = Field(default=1, description="trials that are proposed and measured at once")
    divergence: Annotated[float, Field(ge=0)] = Field(
        default=1e-3, description="weight of the reverse KL divergence from the dense model beside the perplexity"
    )
    windows: Positive = Field(default=100, description="validation windows of a trial")
    candidates: Positive = Field(default=200, description="validation windows to choose those from")
    selection: Annotated[int, Field(ge=0)] = Field(
        default=20,
        description="random allocations whose perplexity tells which windows to choose; 0: the first ones are taken",
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of the search")
    history: str | None = Field(
        default=None, description="results/search/search.json of an earlier search, to know its trials from the start"
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
        """Whether windows are chosen among candidates."""
        return self.selection > 0 and self.candidates > self.windows

    @property
    def space(self) -> dict[str, Any]:
        """Arguments of `mgaa.search.space_of`, but for the compression."""
        return {"groups": self.groups, "dense": self.dense, "least": self.least}


class Study(Lists):
    """Every combination of these lists, each beside random search and MGAA (flows.search)."""

    groups: list[Positive] = Field(min_length=1, description="groups of blocks")
    start: list[Literal["random", "mgaa"]] = Field(min_length=1, description="first trials")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="seeds")


class Sensitivity(Lists):
    """Every type of matrix compressed alone (flows.sensitivity)."""

    compression: list[Compression] = Field(min_length=1, description="fractions of the parameters of a type to remove")


class Recovery(Section):
    """What is done after compression to win back quality."""

    method: Literal["none", "lora", "diagonals"] = Field(
        description="none: the compressed model is final; lora: all linears are tuned by LoRA, which is folded into the weights; "
        "diagonals: the leading directions of the low-rank ones are scaled, at equal budget (Bolaco)"
    )
    tune: Literal["product", "factors"] = Field(
        default="product",
        description="of lora: product: low-rank layers as a whole, whose ranks rise by that of LoRA; factors: A and B, at equal budget",
    )
    epochs: Annotated[float, Field(gt=0)] = Field(default=2.0, description="passes over the examples")
    steps: Positive | None = Field(default=None, description="optimizer steps in place of epochs; null: epochs")
    rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="highest learning rate; null: 1e-4 for lora, 1e-2 for diagonals"
    )
    batch: Positive = Field(default=64, description="sequences per optimizer step")
    micro_batch: Positive = Field(default=4, description="sequences per forward pass; the rest is accumulated")
    rank: Positive | None = Field(
        default=None,
        description="of the updates, or of diagonals the number of directions; null: 8 for lora, 64 for diagonals",
    )
    alpha: Positive = Field(default=16, description="of lora: the updates are scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.05, description="of what enters the updates")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.06, description="share of the steps with a rising rate"
    )
    decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight decay")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the arithmetic"
    )
    evaluate_every: Positive = Field(default=100, description="steps between validations, each with a checkpoint")
    patience: Positive | None = Field(
        default=None, description="validations without a new best before training stops; null: never"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="of the updates, the order and the dropout")
    processes: Positive = Field(default=1, description="how many share a batch, one per GPU")

    @property
    def plan(self) -> dict[str, Any]:
        """Arguments of `mgaa.recovery.Plan`, where there is a method; what is null has the value of its published code."""
        published = {"rate": 1e-2, "rank": 64} if self.method == "diagonals" else {"rate": 1e-4, "rank": 8}
        return {name: published[name] if value is None and name in published else value for name, value in self}


class Samples(Section):
    """How the models go on with a few evaluation texts, for people to read."""

    number: Annotated[int, Field(ge=0)] = Field(default=4, description="texts; 0: none")
    prompt: Positive = Field(default=32, description="tokens of a text that are given, at most")
    tokens: Positive = Field(default=40, description="tokens of a continuation, at most")


class Evaluation(Section):
    """What the models are compared by."""

    baselines: list[Literal["uniform", "level1", "level2", "mgaa", "random"]] = Field(
        description="compared at the same parameter count; mgaa, random: beside a search"
    )
    tasks: list[str] = Field(description="zero-shot tasks, by lm-eval name")
    tasks_folder: str | None = Field(default=None, description="folder with local data of the standard tasks")
    limit: Positive | None = Field(default=None, description="examples per task; null: all")
    batch_size: Positive = Field(description="sequences per forward pass")
    answer_tokens: Positive = Field(default=16, description="of questions about images: tokens of an answer at most")
    samples: Samples = Field(default_factory=Samples, description="continuations of evaluation texts")


class Output(Section):
    """Where a run leaves what it publishes, below the folder of the parameters."""

    results: str = Field(default="results", description="folder of metrics, allocations, figures and plots")
    checkpoint: str = Field(default="models/compressed", description="folder of the compressed model")

    @model_validator(mode="after")
    def _below(self) -> Self:
        for name, value in self:
            if PurePath(value).is_absolute() or ".." in PurePath(value).parts or not PurePath(value).parts:
                raise ValueError(f"expected {name} to be a folder below that of the parameters, got {value}")
        return self


class Source(Section):
    """One backbone of a sweep."""

    source: str = Field(description="folder of a Hugging Face model, or its id on the Hub")
    revision: str | None = Field(default=None, description="commit on the Hub, 40 hexadecimal digits")


class Sweep(Lists):
    """Every combination of these lists; null: the section of that name alone (flows.sweep)."""

    backbone: list[Source] = Field(min_length=1, description="models: folders, or {source: id, revision: commit}")
    factors: list[Factors] = Field(min_length=1, description="factorizers: names, or mappings with options")
    ratios: list[Map] = Field(min_length=1, description="maps of level 1: names, or mappings with options and band")
    ranks: list[Ranks] = Field(
        min_length=1, description="rules of level 2: names, or mappings with options and multiple"
    )
    compression: list[Compression] = Field(min_length=1, description="fractions of the linear parameters to remove")
    split: Literal["evaluation", "validation"] = Field(
        default="evaluation", description="texts to measure on; validation where the numbers serve to choose"
    )


class Profile(Lists):
    """How a device is measured (flows.profile_device)."""

    tokens: list[Positive] = Field(min_length=1, description="tokens per call: 1 is decoding, hundreds are a prompt")
    repetitions: Annotated[int, Field(ge=2)] = Field(default=20, description="behind every median")
    ranks: Annotated[int, Field(ge=2)] = Field(
        default=8, description="ranks that are timed per shape, up to break-even"
    )
    threads: Positive | None = Field(default=None, description="of the CPU; null: those of torch")
    output: str = Field(default="results/latency.json", description="the file, below the folder of params.yaml")


class StoreSection(Section):
    """Where results are kept between runs."""

    path: str = Field(description="folder of the artifact store")
    lock_timeout: Annotated[float, Field(gt=0)] = Field(default=3600.0, description="seconds to wait for another run")
    remote: str | None = Field(
        default=None,
        description="URL of the store of all machines, s3://bucket/folder or whatever fsspec knows; null: the folder is all there is",
        pattern=r"^[a-z0-9+]+://.+",
    )


class RunnerSection(Section):
    """Where the steps run that can run side by side; results do not depend on it."""

    kind: Literal["threads", "dask", "ray"] = Field(
        default="threads",
        description="threads of the run, or worker processes of Dask or Ray, on this machine or on others",
    )
    workers: Literal["auto"] | Positive = Field(
        default="auto", description="how many steps run at a time; auto: one per GPU, and 2 where there are fewer"
    )
    address: str | None = Field(
        default=None,
        description="of a Dask scheduler or a Ray cluster that is there; null: worker processes on this machine",
    )

    @model_validator(mode="after")
    def _addressed(self) -> Self:
        if self.address is not None and self.kind == "threads":
            raise ValueError(f"expected kind dask or ray with address {self.address}, got threads")
        if self.address is not None and self.workers != "auto":
            raise ValueError(
                f"expected workers auto with address {self.address}, got {self.workers}: the cluster has its workers"
            )
        return self


class Tracking(Section):
    """Where MLflow records the run."""

    uri: str = Field(description="MLflow's tracking URI")
    experiment: str = Field(description="MLflow's experiment")
    unreachable: Literal["stop", "buffer"] = Field(
        default="stop",
        description="without the server: stop before work, or record below store.path (buffer) and upload when it is back",
    )
