"""What a compression takes, from the config and the settings alone: memory of the device and of the host, disk, arithmetic, time.

The model is built on the meta device, where tensors have shapes and no content, so a plan of 70 billion parameters takes seconds and no
weights. Each stage is the sum of the tensors that its code holds at the worst moment; what is named here is found again in the file that
is named beside it. Pages of files that the system keeps and can drop (the page cache) do not count. Time is arithmetic over the rates
of this machine (`mgaa.hardware`), plus bytes over the rate of its disk: an estimate, good for telling minutes from hours.

Legend: m outputs, n inputs, p = min(m, n), k basis vectors, d width of the side measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.architectures import architecture_of, decoder_blocks, matrices_of
from mgaa.budget import Matrix
from mgaa.hardware import Rates
from mgaa.hidden import Place
from mgaa.linalg import working_bytes
from mgaa.moments import PANELS, Share
from mgaa.observing import is_narrow
from mgaa.streams import together

WHOLE = 5 * 10**9
"""Bytes of weights up to which a checkpoint is one file (`mgaa.checkpoint.save_blockwise`)."""

DOUBLE, SINGLE = 8, 4
"""Bytes of a number."""


@dataclass(frozen=True)
class Moment:
    """One covariance that calibration accumulates: of width `d`, of an input of `n` channels; `rows` of the weight on the output side."""

    d: int
    n: int
    rows: int


@dataclass(frozen=True)
class Block:
    """One decoder block.

    Attributes:
        weights: bytes of its tensors.
        parameters: of its linears.
        matrices: its weight matrices.
        moments: what calibration accumulates.
        widest: channels of the widest activation inside it, and how many of that width exist at once.
    """

    weights: int
    parameters: int
    matrices: tuple[Matrix, ...]
    moments: tuple[Moment, ...]
    widest: int


@dataclass(frozen=True)
class Layout:
    """The shapes of a model.

    Attributes:
        blocks: of the decoder.
        rest: bytes of everything else.
        head: parameters of the head.
        hidden, vocabulary: widths.
        itemsize: bytes of a weight.
    """

    blocks: tuple[Block, ...]
    rest: int
    head: int
    hidden: int
    vocabulary: int
    itemsize: int

    @property
    def weights(self) -> int:
        """Bytes of the model in memory."""
        return self.rest + sum(block.weights for block in self.blocks)

    @property
    def largest(self) -> int:
        """Bytes of the largest block."""
        return max(block.weights for block in self.blocks)


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do, as far as it costs something.

    Attributes:
        samples, length: calibration sequences and their tokens.
        batch_size: sequences of a micro-batch.
        groups: of sequences whose means are kept.
        shards: workers that share the calibration, all on this machine.
        compression: fraction of the linear parameters to remove.
        models: compressed models that are made of the one decomposition.
        workers: blocks that are decomposed at a time.
        evaluation: tokens, length and batch size of each text that perplexity is measured on.
        stream: whether blocks stay in their files until they are needed.
        hidden: where hidden states wait.
        gradients: whether those of the outputs are measured as well.
        states: where the hidden states in front of every block wait meanwhile.
        accelerator: whether the device has memory of its own.
        room: bytes that are free on the device; where they are few, fewer decompositions are in flight (`mgaa.streams`).
    """

    samples: int
    length: int
    batch_size: int
    groups: int
    compression: float
    evaluation: tuple[tuple[int, int, int], ...] = ()
    models: int = 1
    workers: int = 1
    shards: int = 1
    stream: bool = False
    hidden: Place = "device"
    gradients: bool = False
    states: Place = "device"
    accelerator: bool = False
    room: int = 2**63


@dataclass(frozen=True)
class Stage:
    """What one stage takes at its worst moment.

    Attributes:
        name: of the stage.
        device, host: bytes of tensors. On a CPU they are of one memory.
        disk: bytes that the stage leaves.
        scratch: bytes on the disk that it removes again.
        operations: multiplications and additions, by kind: `forward` in the dtype of the model, `double` in float64, `eigen` in
            float64 inside an eigenproblem.
        read: bytes from the disk.
    """

    name: str
    device: int
    host: int
    disk: int
    scratch: int
    operations: dict[str, float]
    read: int

    def seconds(self, rates: Rates) -> float:
        """On a machine of these rates."""
        arithmetic: float = sum(count / getattr(rates, kind) for kind, count in self.operations.items())
        return arithmetic + self.read / rates.read + (self.disk + self.scratch) / rates.write


def layout_of(model: PreTrainedModel) -> Layout:
    """The shapes of a model that was taken apart, or of its skeleton (`mgaa.skeleton`).

    Raises:
        InputError: the architecture has no entry, or a block has a linear that the entry does not name.
    """
    matrices = matrices_of(model)
    blocks = decoder_blocks(model)
    inside = {id(tensor) for tensor in (*blocks.parameters(), *blocks.buffers())}
    rest = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in inside}
    head = model.get_output_embeddings()
    return Layout(
        blocks=tuple(_block(model, index, [m for m in matrices if m.block == index]) for index in range(len(blocks))),
        rest=sum(rest.values()),
        head=0 if head is None else sum(parameter.numel() for parameter in head.parameters()),
        hidden=model.config.get_text_config().hidden_size,
        vocabulary=model.get_input_embeddings().num_embeddings,
        itemsize=model.dtype.itemsize,
    )


def _block(model: PreTrainedModel, index: int, matrices: Sequence[Matrix]) -> Block:
    block = decoder_blocks(model)[index]
    return Block(
        weights=sum(tensor.nbytes for tensor in (*block.parameters(), *block.buffers())),
        parameters=sum(matrix.parameters for matrix in matrices),
        matrices=tuple(matrices),
        moments=tuple(_moments(model, block)),
        widest=max(max(matrix.m, matrix.n) for matrix in matrices),
    )


def _moments(model: PreTrainedModel, block: nn.Module) -> Iterator[Moment]:
    for sublayer in architecture_of(model.config).sublayers:
        for group in sublayer.groups(block):
            weights: list[Tensor] = [block.get_submodule(name).weight for name in group.linears]  # type: ignore[misc]
            shapes = [tuple(weight.shape) for weight in weights]
            if is_narrow(shapes):
                yield from (Moment(m, n, m) for m, n in shapes)
            else:
                yield Moment(shapes[0][1], shapes[0][1], 0)


def plan(layout: Layout, settings: Settings) -> list[Stage]:
    """The stages of a run in order."""
    return [
        _load(layout),
        _calibrate(layout, settings),
        *([_differentiate(layout, settings)] if settings.gradients else []),
        _decompose(layout, settings),
        _factorize(layout, settings),
        _assemble(layout, settings),
        *([_evaluate(layout, settings)] if settings.evaluation else []),
        Stage("export", 0, 0, _compressed(layout, settings), 0, {}, _compressed(layout, settings)),
    ]


def _load(layout: Layout) -> Stage:
    """One block after the other is looked at, the next one is read meanwhile (`mgaa.shelf`)."""
    device = layout.rest + layout.largest
    return Stage("load backbone", device, layout.largest, 0, 0, {}, 2 * layout.weights)


def _held(layout: Layout, settings: Settings) -> tuple[int, int]:
    """Bytes of the model on the device and on the host while a stage goes block by block, the next block read ahead."""
    if not settings.stream:
        return layout.weights, 0
    return layout.rest + layout.largest, layout.largest if len(layout.blocks) > 1 else 0


def _calibrate(layout: Layout, settings: Settings) -> Stage:
    """`mgaa.streaming`, `mgaa.observing`, `mgaa.moments`."""
    share = Share(settings.samples, 0, settings.shards)
    batch = max(map(len, share.batches(settings.batch_size))) * settings.length
    hidden = settings.samples * settings.length * layout.hidden * layout.itemsize
    pending = 3 * batch * layout.hidden * layout.itemsize  # being written, and waiting to be (`mgaa.hidden`)
    worst = max(_block_calibration(layout, settings, block, batch) for block in layout.blocks)
    device, host = _held(layout, settings)
    host += pending if settings.accelerator else 0
    tokens = settings.samples * settings.length
    return Stage(
        "calibrate",
        device * (settings.shards if settings.stream else 1)
        + settings.shards * worst
        + (hidden if settings.hidden == "device" else 0),
        host + (hidden if settings.hidden == "host" else 0),
        sum(_statistics(block, settings) for block in layout.blocks),
        2 * hidden,
        {
            "forward": sum(_forward(layout, block, tokens, settings.length) for block in layout.blocks),
            "double": sum(tokens * _moment_work(moment) for block in layout.blocks for moment in block.moments),
        },
        layout.weights,
    )


def _block_calibration(layout: Layout, settings: Settings, block: Block, batch: int) -> int:
    """Bytes beside the weights and the waiting hidden states."""
    share = Share(settings.samples, 0, settings.shards)
    branches = 1 + int(log2(len(share.parts)))  # of the tree, and the part at hand
    groups = min(settings.groups, settings.samples)
    sums = sum(DOUBLE * (moment.d * (moment.d + groups + 1) + 3 * moment.n) for moment in block.moments)
    watched = 4 * batch * layout.hidden * layout.itemsize  # the stream around the sublayers
    inside = _activations(layout, block, batch)
    entering = (
        batch * (3 * layout.hidden + block.widest) * layout.itemsize
    )  # of those, what the input of a linear leaves
    sequence = DOUBLE * settings.length * max(3 * moment.n + 2 * moment.d for moment in block.moments)
    if layout.itemsize < SINGLE:  # weight and input of an output side that the forward has rounded
        narrow = [moment.n * (moment.rows + settings.length) for moment in block.moments if moment.rows]
        sequence += SINGLE * max(narrow, default=0)
    largest = max(moment.d for moment in block.moments)
    finishing = sums + DOUBLE * largest * largest + sums  # sums, covariances, one triangle
    saving = int(1.5 * sums) + int(1.5 * DOUBLE * largest * largest)  # packed, with indices
    return max(branches * sums + watched + max(inside, entering + sequence), finishing, saving)


def _differentiate(layout: Layout, settings: Settings) -> Stage:
    """`mgaa.gradients`, `mgaa.feedback`: the tokens there, with the states in front of every block kept, and back."""
    length, tokens = settings.length, settings.samples * settings.length
    batch = min(settings.batch_size, settings.samples, max(1, 2**27 // (length * layout.vocabulary))) * length
    hidden = (len(layout.blocks) + 2) * tokens * layout.hidden * layout.itemsize  # gradients wait as one more
    head = 2 * batch * (layout.vocabulary * (layout.itemsize + SINGLE) + 2 * layout.hidden * layout.itemsize)
    worst = max(head, *(_block_differentiation(layout, block, batch, length) for block in layout.blocks))
    device, host = _held(layout, settings)
    forward = 3 * sum(_forward(layout, block, tokens, length) for block in layout.blocks) + 6.0 * layout.head * tokens
    double = sum((1 + 1 / PANELS) * matrix.m**2 for block in layout.blocks for matrix in block.matrices)
    statistics = sum(_statistics(block, settings) for block in layout.blocks)
    return Stage(
        "differentiate",
        device + worst + (hidden if settings.states == "device" else 0),
        host + (hidden if settings.states == "host" else 0),
        statistics + sum(_gradients(block) for block in layout.blocks),
        hidden,
        {"forward": forward, "double": tokens * double},
        2 * layout.weights + statistics,
    )


def _block_differentiation(layout: Layout, block: Block, batch: int, length: int) -> int:
    """Bytes beside the weights and the waiting hidden states: what autograd keeps of a block, and the sums."""
    sums = DOUBLE * sum(matrix.m**2 for matrix in block.matrices)
    widest = max(matrix.m for matrix in block.matrices)
    norms = 2 * batch * layout.hidden * SINGLE
    inside = 2 * _activations(layout, block, batch) + norms + 2 * DOUBLE * length * widest
    saving = sums // 2 + 2 * DOUBLE * widest**2 + 2 * DOUBLE * sum(moment.d**2 for moment in block.moments)
    return sums + max(inside, saving)


def _gradients(block: Block) -> int:
    return sum(DOUBLE * matrix.m * (matrix.m + 1) // 2 for matrix in block.matrices)


def _activations(layout: Layout, block: Block, tokens: int) -> int:
    """Of a block while so many tokens pass: the stream, its norm, and in the FFN gate, its activation, up and their product."""
    return tokens * (3 * layout.hidden + 3 * block.widest) * layout.itemsize


def _statistics(block: Block, settings: Settings) -> int:
    groups = min(settings.groups, settings.samples)
    return sum(DOUBLE * (m.d * (m.d + 1) // 2 + 3 * m.n + groups * m.d) for m in block.moments)


def _moment_work(moment: Moment) -> float:
    """Per token: the upper panels of a product, and on the output side the product with the weight."""
    return (1 + 1 / PANELS) * moment.d**2 + 2 * moment.rows * moment.n


def _forward(layout: Layout, block: Block, tokens: int, length: int) -> float:
    return 2.0 * block.parameters * tokens + 4.0 * tokens * length * layout.hidden


def _kept(matrix: Matrix) -> int:
    """Basis vectors up to break-even."""
    return max(1, (matrix.parameters - 1) // (matrix.m + matrix.n))


def _decompose(layout: Layout, settings: Settings) -> Stage:
    """`mgaa.linalg`, `mgaa.streams`: in each worker the statistics and the weights of a block, the bases found, and what is in flight."""
    model = layout.weights if not settings.stream else layout.rest + settings.workers * layout.largest
    worst = max(_block_decomposition(block, settings, settings.room - model) for block in layout.blocks)
    work = {"double": 0.0, "eigen": 0.0}
    for block in layout.blocks:
        for m in block.matrices:
            p = min(m.m, m.n)
            work["double"] += 2.0 * p * m.n * m.n + 1.25 * p * p * m.n
            if m.m > m.n:
                work["double"] += 2.0 * m.m * m.n**2 + 4.0 * m.m * m.n * _kept(m)
            work["eigen"] += float(p) ** 3
    spectra = sum(_basis(matrix) for block in layout.blocks for matrix in block.matrices)
    read = layout.weights + sum(
        _statistics(block, settings) + settings.gradients * _gradients(block) for block in layout.blocks
    )
    return Stage("decompose", model + settings.workers * worst, 0, spectra, 0, work, read)


def _block_decomposition(block: Block, settings: Settings, room: int) -> int:
    """Bytes beside the model: statistics, bases, and the largest decompositions, as many as go at a time."""
    statistics = sum(DOUBLE * moment.d * moment.d for moment in block.moments)
    statistics += settings.gradients * sum(DOUBLE * matrix.m**2 for matrix in block.matrices)
    bases = sum(_basis(matrix) for matrix in block.matrices)
    outputs = {(moment.rows, moment.n) for moment in block.moments}
    sizes = [
        working_bytes(m.m, m.n, _kept(m), side="output" if (m.m, m.n) in outputs else "input") for m in block.matrices
    ]
    count = together(sizes, room - statistics - bases) if settings.accelerator else 1
    return statistics + bases + sum(sorted(sizes, reverse=True)[:count])


def _basis(matrix: Matrix) -> int:
    return SINGLE * matrix.m * _kept(matrix) + DOUBLE * min(matrix.m, matrix.n)


def _factorize(layout: Layout, settings: Settings) -> Stage:
    """`mgaa.factors`: in each worker the bases and weights of a block, its factors, and one matrix in float64."""

    def rank(matrix: Matrix) -> float:
        return (1 - settings.compression) * matrix.parameters / (matrix.m + matrix.n)

    worst = 0.0
    work, factors = 0.0, 0.0
    for block in layout.blocks:
        bases = sum(_basis(matrix) for matrix in block.matrices)
        made = (1 - settings.compression) * block.parameters * layout.itemsize
        one = max(DOUBLE * (m.m * m.n + m.m * rank(m) + 2 * rank(m) ** 2 + 2 * rank(m) * m.n) for m in block.matrices)
        worst = max(worst, bases + made + one)
        factors += made
        work += sum(2.0 * m.m * m.n * rank(m) + 2.0 * rank(m) ** 2 * m.n for m in block.matrices)
    model = layout.weights if not settings.stream else layout.rest + settings.workers * layout.largest
    read = settings.models * sum(_basis(matrix) for block in layout.blocks for matrix in block.matrices)
    return Stage(
        "factorize",
        model + settings.workers * int(worst),
        0,
        settings.models * int(factors),
        0,
        {"double": settings.models * work},
        read + settings.models * layout.weights,
    )


def _compressed(layout: Layout, settings: Settings) -> int:
    """Bytes of a compressed checkpoint."""
    removed = settings.compression * sum(block.parameters for block in layout.blocks) * layout.itemsize
    return layout.weights - int(removed)


def _assemble(layout: Layout, settings: Settings) -> Stage:
    """`mgaa.shards`: a block, the next one read ahead, and the one before it being written; parts are joined where one file holds all."""
    size = _compressed(layout, settings)
    model = layout.weights if not settings.stream else layout.rest  # what the process has loaded for the stages before
    return Stage(
        "assemble",
        0,
        model + layout.rest + 3 * layout.largest,
        settings.models * size,
        size if size <= WHOLE else 0,
        {},
        settings.models * (layout.weights + size),
    )


def _evaluate(layout: Layout, settings: Settings) -> Stage:
    """`mgaa.perplexity`, of the dense model and of each compressed one; one of them is loaded beside the backbone."""
    worst, hidden, work = 0, 0, 0.0
    for tokens, length, batch_size in settings.evaluation:
        batch = min(batch_size, max(1, 2**27 // (length * layout.vocabulary)), max(1, tokens // length)) * length
        logits = batch * layout.vocabulary * layout.itemsize * (2 if settings.stream else 1)
        inside = max(_activations(layout, block, batch) for block in layout.blocks)
        worst = max(worst, logits + 3 * SINGLE * 2**22 + batch * layout.hidden * layout.itemsize, inside)
        hidden = max(hidden, tokens * layout.hidden * layout.itemsize)
        per_token = sum(2.0 * block.parameters for block in layout.blocks) + 2.0 * layout.head
        work += tokens * per_token
    loaded = layout.weights if not settings.stream else layout.rest
    device, host = _held(layout, settings)
    waiting = hidden if settings.stream else 0
    return Stage(
        "evaluate",
        loaded + device + worst + (waiting if settings.hidden == "device" else 0),
        host + (waiting if settings.hidden == "host" else 0),
        0,
        2 * waiting,
        {"forward": (settings.models + 1) * work},
        (settings.models + 1) * layout.weights,
    )


@dataclass(frozen=True)
class Room:
    """Bytes that are there: free memory of the device and of the host, and free disk."""

    device: int
    host: int
    disk: int


@dataclass(frozen=True)
class Peaks:
    """The most that a run takes of each.

    Attributes:
        device, host: bytes of memory; on a CPU all of it is `host`.
        disk: bytes.
        stages: which stage takes the most of the device, of the host.
    """

    device: int
    host: int
    disk: int
    stages: tuple[str, str]


def peaks(stages: Sequence[Stage], settings: Settings, base: int) -> Peaks:
    """What the stages of a run take together; `base` is what a process takes before it has loaded anything."""

    def on_device(stage: Stage) -> int:
        return stage.device if settings.accelerator else 0

    def on_host(stage: Stage) -> int:
        return base + stage.host + (0 if settings.accelerator else stage.device)

    left, disk = 0, 0
    for stage in stages:
        left += stage.disk
        disk = max(disk, left + stage.scratch)
    first, second = max(stages, key=on_device), max(stages, key=on_host)
    return Peaks(on_device(first), on_host(second), disk, (first.name, second.name))


ERROR = 0.15
"""What a prediction may be too high by (docs/performance.md): so much more than there is does not refuse a run."""


def short_of(found: Peaks, room: Room, settings: Settings) -> list[str]:
    """What does not fit, in words; empty where everything does."""
    wanted = [
        (found.device if settings.accelerator else 0, room.device, f"on the device in '{found.stages[0]}'"),
        (found.host, room.host, f"of memory in '{found.stages[1]}'"),
        (found.disk, room.disk, "of disk"),
    ]
    return [
        f"{gigabytes(needed)} {what}, {gigabytes(free)} are free"
        for needed, free, what in wanted
        if (1 - ERROR) * needed > free
    ]


def remedies(settings: Settings) -> Iterator[tuple[dict[str, object], Settings]]:
    """Settings that take less, the gentlest first, each with those before it: what to set, and the settings it makes."""
    changed: dict[str, object] = {}
    steps: list[tuple[str, str, Any]] = [
        ("stream", "backbone.stream", True),
        ("hidden", "backbone.hidden", "host" if settings.accelerator else "disk"),
        ("hidden", "backbone.hidden", "disk"),
        ("shards", "statistics.shards", 1),
        ("workers", "runner.workers", 1),
        ("batch_size", "statistics.batch_size", 1),
        (
            "evaluation",
            "evaluation.batch_size",
            tuple((tokens, length, 1) for tokens, length, _ in settings.evaluation),
        ),
    ]
    for name, key, value in steps:
        if getattr(settings, name) != value:
            settings = replace(settings, **{name: value})
            settings = replace(settings, states=value) if name == "hidden" else settings
            changed[key] = {"stream": "always", "evaluation": 1}.get(name, value)
            yield dict(changed), settings


def gigabytes(count: int) -> str:
    """A count of bytes as people read it."""
    return f"{count / 1e9:.2f} GB"
