"""Effect of pooling: MGAA with `pooled` against MGAA with `afm`, compared with the noise of the calibration draw and the evaluation
windows.

    python benchmarks/pooled.py NAME=MODEL:TEXT [NAME=MODEL:TEXT ...]

Texts, their parts and the evaluation windows are those of `benchmarks/ablations.py`. The 128 calibration windows are drawn five times
(seeds 0 to 4); one pass over each draw serves both factorizers and both compressions. A row is one backbone at one compression, in
thousandths of log-perplexity:

- afm: its increase over dense, mean over the draws, and the standard deviation over the draws
- pooled - afm: of the same draw; mean and standard deviation over the draws (below 0 pooled is better)
- draw 0: that difference, with the interval of a paired bootstrap over the evaluation windows (95 %)
- between: the share of the variance of an output that lies between the groups, which `pooled` leaves out; mean over matrices and draws
"""

import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from benchmarks.ablations import LENGTH, texts
from mgaa.checkpoints.save import apply_factors, twin_of
from mgaa.compress import RATIOS
from mgaa.decomposition.linalg import Spectrum
from mgaa.evaluation.perplexity import Perplexity, perplexity
from mgaa.factors import decompose_block, factorize_linear
from mgaa.inputs.tokens import pack, windows
from mgaa.levels import Target, allocate
from mgaa.models.architectures import matrices_of
from mgaa.models.fused import unfuse_
from mgaa.ranks import ladders_of
from mgaa.statistics.calibration import stream_statistics
from tasks.evaluation.bootstrap import Bootstrap

TARGETS = (0.2, 0.3)
DRAWS = 5
HEAD = "| backbone | compression | afm | pooled - afm | draw 0 | between |\n|---|---|---|---|---|---|"
Found = dict[tuple[str, float], Perplexity]
"""Perplexity of both factorizers at every compression."""


class Draw:
    """Result of one pass over one draw of calibration windows: the cosines, and the spectra of both factorizers."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        self.model, self.matrices = model, matrices_of(model)
        self.cosines: dict[str, float] = {}
        self.spectra: dict[str, dict[str, Spectrum]] = {"afm": {}, "pooled": {}}
        for index, block in enumerate(stream_statistics(model, tokens)):
            names = {matrix.local: matrix.name for matrix in self.matrices if matrix.block == index}
            weights = {local: model.get_submodule(name).weight.detach() for local, name in names.items()}
            for factorizer, found in self.spectra.items():
                found |= {names[local]: each for local, each in decompose_block(weights, block, factorizer).items()}
            self.cosines |= {f"{index}.{sublayer}": cosine for sublayer, cosine in block.cosines.items()}

    @property
    def between(self) -> float:
        """Fraction of an output's variance that lies between the groups, averaged over the matrices."""
        pairs = [(self.spectra["pooled"][name], whole) for name, whole in self.spectra["afm"].items()]
        return statistics.fmean(1 - float(inside.energies.sum() / whole.energies.sum()) for inside, whole in pairs)

    def measure(self, factorizer: str, compression: float, evaluation: Tensor) -> Perplexity:
        """Perplexity of the model that `mgaa.compress_` would make from this draw."""
        found = self.spectra[factorizer]
        energies = {name: spectrum.energies for name, spectrum in found.items()}
        ladders = ladders_of(self.matrices, energies, centred=True, multiple="auto")
        options: dict[str, Any] = dict(RATIOS)
        level1 = (options.pop("method"), options)
        _, outcome = allocate(ladders, self.cosines, Target(compression), level1, ("energy", {}))
        ranked = {rank.matrix.name: rank.rank for rank in outcome if rank.rank is not None}
        twin = twin_of(self.model)
        apply_factors(
            twin, {name: factorize_linear(self.model, name, found[name], rank) for name, rank in ranked.items()}
        )
        return perplexity(twin, evaluation, length=LENGTH, batch_size=16)


def rows(name: str, source: str, text: str) -> Iterator[str]:
    """Rows of one backbone."""
    model, tokenizer = mgaa.load(source, device="cpu")
    calibration, evaluation = texts(text)
    stream = pack(calibration, tokenizer).ids
    evaluated = windows(pack(evaluation, tokenizer).ids, LENGTH, samples=256).flatten()
    dense = perplexity(model, evaluated, length=LENGTH, batch_size=16)
    unfuse_(model)
    found: list[Found] = []
    between = []
    for seed in range(DRAWS):
        draw = Draw(model, windows(stream, LENGTH, samples=128, seed=seed))
        between.append(draw.between)
        found.append(
            {(each, target): draw.measure(each, target, evaluated) for target in TARGETS for each in draw.spectra}
        )
    for target in TARGETS:
        pairs = [(each["afm", target], each["pooled", target]) for each in found]
        afm = [1000 * (plain.nll - dense.nll) for plain, _ in pairs]
        change = [1000 * (pooled.nll - plain.nll) for plain, pooled in pairs]
        first = Bootstrap(dense.counts).difference(pairs[0][1].losses, pairs[0][0].losses)
        cells = [
            f"{statistics.fmean(afm):.2f} ± {statistics.stdev(afm):.2f}",
            f"{statistics.fmean(change):+.2f} ± {statistics.stdev(change):.2f}",
            f"{1000 * first.value:+.2f} ({1000 * first.low:+.2f} to {1000 * first.high:+.2f})",
            f"{100 * statistics.fmean(between):.2f} %",
        ]
        yield f"| {name} | {target} | {' | '.join(cells)} |"
    print(f"{name}: draws of 128 of {len(stream) // LENGTH} windows", file=sys.stderr)


def main() -> None:
    """Read the command line, run, print."""
    began = time.perf_counter()
    print(HEAD, flush=True)
    for given in sys.argv[1:]:
        name, place = given.split("=", 1)
        for row in rows(name, *place.rsplit(":", 1)):
            print(row, flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
