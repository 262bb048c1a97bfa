"""Arguments of steps that travel together.

Data alone: the cache key holds the fields (tasks/cache/stage.py), and no code of these classes belongs to a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgaa.anchoring.fitting import Anchoring
    from mgaa.anchoring.refinement import Refinement
    from mgaa.statistics.calibration import CalibrationSettings


@dataclass(frozen=True)
class MethodSpec:
    """A method, by the name of its file, with its options."""

    method: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class TargetSpec:
    """Goal of both levels.

    Attributes:
        compression: fraction of the linear parameters to remove.
        multiple: the step between ranks, or `auto`.
        channels: arguments of `mgaa.allocation.channels.Pruning`; null where FFNs are factorized.
        latency: the profile by which ranks are faster than dense, and at how many tokens; null where parameters are the objective.
        spectrum: whose energies level 2 compares, `metric` or `plain` (`mgaa.levels.Target`).
    """

    compression: float
    multiple: int | str
    channels: Mapping[str, Any] | None = None
    latency: Mapping[str, Any] | None = None
    spectrum: str = "metric"


@dataclass(frozen=True)
class WindowSpec:
    """Windows of a perplexity (`mgaa.evaluation.perplexity`): `length` and `stride` in tokens, `batch_size` in windows."""

    length: int
    stride: int | None
    batch_size: int


@dataclass(frozen=True)
class QuestionSpec:
    """Sets of questions about images, and the tokens that an answer has at most."""

    sets: Sequence[str]
    answer_tokens: int


@dataclass(frozen=True)
class TaskSpec:
    """Zero-shot tasks whose items lie together.

    Attributes:
        limit: number of items of each task, from the first; null takes all.
        folder: where the items lie; null where they are made from the evaluation texts.
        content: sha256 of every file that the tasks depend on.
        add_bos_token: whether contexts begin with the beginning mark; null where the tokenizer itself adds it.
    """

    tasks: Sequence[str]
    limit: int | None
    batch_size: int
    add_bos_token: bool | None
    folder: str | None
    content: Mapping[str, str]


@dataclass(frozen=True)
class HubItems:
    """Items of a zero-shot task: a split of a data set of the Hub at a commit; `subset` is null where it has one configuration."""

    source: str
    subset: str | None
    split: str
    revision: str


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer of ranks (`mgaa.search.optimizer.propose`).

    Attributes:
        method: `gp` or `random`.
        dimensions: of the search space.
        initial: number of random points before the first proposal.
        start: the first point; null where it is random.
    """

    method: str
    dimensions: int
    seed: int
    initial: int
    start: list[float] | None


@dataclass(frozen=True)
class AnchorSpec:
    """A fit of factors to the dense model; `refinement` is null where blocks are not tuned."""

    anchoring: "Anchoring"
    refinement: "Refinement | None"
    calibration: "CalibrationSettings"
