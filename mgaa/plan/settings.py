"""What a run is asked to do, and what a stage of it takes."""

from dataclasses import dataclass

from mgaa.blocks.hardware import Rates
from mgaa.blocks.hidden_states import Place


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
        anchored: where the tokens wait in front of the models whose factors are fitted to the dense one; `None` where they are slices.
        to_stream: whether o and down are fitted to the residual stream.
        refinement: steps by which each block is tuned then.
        accelerator: whether the device has memory of its own.
        room: bytes that are free on the device; where they are few, fewer decompositions are in flight (`mgaa.decomposition.cuda_streams`).
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
    anchored: Place | None = None
    to_stream: bool = True
    refinement: int = 0
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
