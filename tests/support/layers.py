"""One linear layer with its calibration tokens, on which the tests of factorizers measure errors.

Errors are measured on the tokens, or with a root `S` of the metric, `||(W - B A) S||`; never taken from the spectrum under test.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mgaa.decomposition.linalg import Metric, Spectrum
from mgaa.factors import decompose_block, factorize
from mgaa.methods import load_method
from mgaa.models.lowrank import Factors
from mgaa.statistics.accumulate import Accumulator
from mgaa.statistics.statistics import BlockStatistics

SHAPES = [(24, 64), (48, 48), (96, 32)]  # wide, square, tall: m outputs, n inputs
SIDES = [((24, 64), "input"), ((24, 64), "output"), ((48, 48), "input"), ((48, 48), "output"), ((96, 32), "input")]
GROUPS, SEQUENCES = 4, 8


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer with its calibration tokens and the statistics that calibration keeps of them."""

    x: Tensor
    weight: Tensor
    side: str = "input"

    @property
    def statistics(self) -> BlockStatistics:
        found = gather(self.x, self.weight if self.side == "output" else None)
        return replace(found, gradients={"linear": self.gradient})

    @property
    def gradient(self) -> Tensor:
        """A second moment of output gradients, of condition 1e3, on axes other than those of the outputs."""
        m = len(self.weight)
        axes = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64, generator=torch.Generator().manual_seed(m))).Q
        return axes * torch.logspace(0, -3, m, dtype=torch.float64) @ axes.T

    @property
    def y(self) -> Tensor:
        return self.x @ self.weight.double().T

    def spectrum(self, name: str, **options: object) -> Spectrum:
        return decompose_block({"linear": self.weight}, self.statistics, name, **options)["linear"]

    def factors(self, name: str, rank: int, bias: Tensor | None = None, **options: object) -> Factors:
        return factorize(self.weight, bias, self.spectrum(name, **options), rank)

    def all_factors(self, name: str) -> list[Factors]:
        """Factors of every rank below break-even, the lowest first."""
        spectrum = self.spectrum(name)
        return [factorize(self.weight, None, spectrum, rank) for rank in self.ranks]

    def error(self, factors: Factors, bias: Tensor | None = None) -> float:
        """Mean over tokens of the squared error of the outputs."""
        found = self.x @ (factors.B.double() @ factors.A.double()).T
        found = found if factors.bias is None else found + factors.bias.double()
        wanted = self.y if bias is None else self.y + bias
        return float((wanted - found).square().sum() / len(self.x))

    def metric(self, name: str) -> Metric:
        """Metric of the factorizer on the side of the input, whatever side the layer measures."""
        statistics = replace(gather(self.x).of("linear"), gradient=self.gradient)
        found: Metric = load_method("factors", name, {})(statistics)
        return found

    def output_root(self, name: str) -> Tensor:
        """`L` with `L L^T = Gamma`, the weighting of output errors by the factorizer; the identity if it has none."""
        output = self.metric(name).output
        if output is None:
            return torch.eye(len(self.weight), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(output)
        return vectors * values.sqrt()

    def root(self, name: str) -> Tensor:
        """`S` with `S S^T = M`, the metric of the factorizer on the side of the input; zero where it has no scale."""
        metric = self.metric(name)
        moment = metric.moment * (metric.scale > 0)
        if moment.ndim == 1:
            return moment.sqrt().diag()
        values, vectors = torch.linalg.eigh(moment)
        return vectors * values.clamp(min=0).sqrt()

    def error_in(self, root: Tensor, factors: Factors, output: Tensor | None = None) -> float:
        """Squared error `||L^T (W - B A) S||` in a metric `S S^T`, weighted by `L L^T` at the outputs."""
        missing = (self.weight.double() - factors.B.double() @ factors.A.double()) @ root
        return float((missing if output is None else output.T @ missing).square().sum())

    def least_in(self, root: Tensor, output: Tensor | None = None) -> Tensor:
        """Least possible squared error in that metric at ranks 0, 1, ..."""
        wanted = self.weight.double() @ root
        return dropped(wanted if output is None else output.T @ wanted)

    @property
    def ranks(self) -> range:
        """Ranks that cost less than the matrix, and rank 1 in any case."""
        m, n = self.weight.shape
        return range(1, max(1, (m * n - 1) // (m + n)) + 1)


def gather(x: Tensor, weight: Tensor | None = None, groups: int = GROUPS) -> BlockStatistics:
    """Calibration statistics of the tokens in up to eight sequences."""
    sequences = x.split(-(-len(x) // SEQUENCES))
    accumulator = Accumulator("linear", groups, len(sequences), weight)
    for index, sequence in enumerate(sequences):
        accumulator.update(index, sequence)
    return BlockStatistics({}, {}, {"linear": accumulator.finish()}, {"linear": "linear"})


def groups_of(x: Tensor) -> list[Tensor]:
    """Tokens by the groups of `gather`."""
    sequences = x.split(-(-len(x) // SEQUENCES))
    count = min(GROUPS, len(sequences))
    of = [index * count // len(sequences) for index in range(len(sequences))]
    return [torch.cat([s for s, group in zip(sequences, of, strict=True) if group == k]) for k in range(count)]


def dropped(outputs: Tensor) -> Tensor:
    """Sums of the squared singular values that ranks 0, 1, ... leave out: the least squared error of any matrix of that rank."""
    energies = torch.linalg.svdvals(outputs).square()
    return torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(max(outputs.shape))])


def layer(
    m: int, n: int, *, condition: float = 1e2, mean: float = 0.5, tokens: int = 400, side: str = "input"
) -> Layer:
    """A layer whose tokens have log-spaced energies in random directions around a mean, with a random weight."""
    generator = torch.Generator().manual_seed(m * n)
    directions = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    scales = condition ** -(0.5 * torch.linspace(0, 1, n, dtype=torch.float64))
    x = torch.randn(tokens, n, dtype=torch.float64, generator=generator) * scales @ directions.T
    x = x + mean * torch.randn(n, dtype=torch.float64, generator=generator)
    return Layer(x, torch.randn(m, n, dtype=torch.float64, generator=generator), side)
