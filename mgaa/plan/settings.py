"""Settings of a run that determine its cost, and the cost of a stage."""

from dataclasses import dataclass

from mgaa.blocks.hardware import Rates
from mgaa.blocks.hidden_states import Place


@dataclass(frozen=True)
class Settings:
    """Settings of a run, as far as they determine its cost.

    Attributes:
        samples, length: calibration sequences and their tokens.
        batch_size: sequences of a micro-batch.
        groups: of sequences whose means are kept.
        shards: workers that share the calibration, all on this machine.
        compression: fraction of the linear parameters to remove.
        models: compressed models from the one decomposition.
        workers: blocks that are decomposed at a time.
        evaluation: tokens, length and batch size of each text for perplexity.
        stream: whether blocks stay in their files until they are needed.
        hidden: where hidden states are held.
        gradients: whether output gradients are measured as well.
        states: where the hidden states at the input of every block are held for the backward pass.
        anchored: where the tokens are held at the input of the models whose factors are fitted to the dense one; `None` for slices.
        to_stream: whether o and down are fitted to the residual stream.
        refinement: number of steps by which each block is then tuned.
        accelerator: whether the device has memory of its own.
        gguf: bytes of the GGUF file that the model is dequantized from; 0 for a folder.
        room: free bytes on the device; with few, fewer decompositions are in flight (`mgaa.decomposition.cuda_streams`).
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
    gguf: int = 0
    room: int = 2**63


@dataclass(frozen=True)
class StageCost:
    """Peak cost of one stage.

    Attributes:
        name: of the stage.
        device, host: bytes of tensors. On a CPU both are the same memory.
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
        """Estimate the time on a machine with these rates."""
        arithmetic: float = sum(count / getattr(rates, kind) for kind, count in self.operations.items())
        return arithmetic + self.read / rates.read + (self.disk + self.scratch) / rates.write
