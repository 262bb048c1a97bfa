"""Safe defaults of level 1 for every backbone: a grid on validation text, and the choice that would be made without each backbone.

    python benchmarks/defaults.py NAME=MODEL:TEXT [NAME=MODEL:TEXT ...] [--output grid.json]

Of every text the first 40 % of the documents calibrate and the next 20 % validate; the rest is never read here. `TEXT` is a file, or
`demo`. A cell is the increase of log-perplexity over dense, as a share of uniform's at the same budget, refill and factorizer (`afm`):
below 1 is better than uniform. The choice minimises the worst cell at 0.2, 0.3 and 0.4, ties broken by the mean; leave-one-out repeats the
choice without one backbone and reads the result on it. Spectra are computed once per backbone, so a cell costs slicing and one validation
pass.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import product
from pathlib import Path

import torch
from tqdm.auto import tqdm

import mgaa
from demo import corpus
from mgaa import factors, ranks, ratios
from mgaa.evaluation.perplexity import perplexity
from mgaa.inputs import tokens
from mgaa.models.architectures import matrices_of
from mgaa.statistics.calibration import stream_statistics
from tasks.data import documents

TARGETS = (0.2, 0.3, 0.4)
LENGTH = 256


class Experiment:
    """One backbone with its spectra: measures any allocation on the validation text."""

    def __init__(self, model: str, text: str, *, windows: int = 120) -> None:
        self.model, tokenizer = mgaa.load(model, dtype="float32")
        calibration, validation = _texts(text)
        measured = tokens.windows(tokens.pack(calibration, tokenizer).ids, LENGTH, samples=128)
        self.validation = tokens.windows(tokens.pack(validation, tokenizer).ids, LENGTH)[:windows].flatten()
        self.matrices = matrices_of(self.model)
        self.dense = {m.name: self.model.get_submodule(m.name).weight.detach().clone() for m in self.matrices}
        self.cosines: dict[str, float] = {}
        self.spectra: dict[str, mgaa.decomposition.linalg.Spectrum] = {}
        for index, block in enumerate(stream_statistics(self.model, measured)):
            names = {m.local: m.name for m in self.matrices if m.block == index}
            found = factors.decompose_block({local: self.dense[name] for local, name in names.items()}, block, "afm")
            self.spectra |= {names[local]: spectrum for local, spectrum in found.items()}
            self.cosines |= {f"{index}.{sublayer}": cosine for sublayer, cosine in block.cosines.items()}
        energies = {name: spectrum.energies for name, spectrum in self.spectra.items()}
        self.ladders = ranks.ladders_of(self.matrices, energies, centred=True)
        self.nll = self._nll()
        self.uniform = {target: self.increase("uniform", "uniform", target) for target in TARGETS}

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Linear parameters by sublayer."""
        groups = ranks.by_sublayer(self.ladders).items()
        return {name: sum(ladder.matrix.parameters for ladder in group) for name, group in groups}

    def increase(
        self, level1: str, level2: str, target: float, *, band: float | None = None, **options: float
    ) -> float:
        """Increase of the validation NLL over dense."""
        reach = ranks.reach_of(self.ladders)
        given = ratios.allocate_ratios(
            level1, self.cosines, self.parameters, reach, compression=target, band=band, **options
        )
        for outcome in ranks.allocate_ranks(level2, self.ladders, given, compression=target):
            name, linear = outcome.matrix.name, self.model.get_submodule(outcome.matrix.name)
            linear.weight.data, linear.bias = self.dense[name], None
            if outcome.rank is not None:
                made = factors.factorize(self.dense[name], None, self.spectra[name], outcome.rank)
                linear.weight.data, linear.bias = made.B @ made.A, torch.nn.Parameter(made.bias, requires_grad=False)
        return self._nll() - self.nll

    def _nll(self) -> float:
        return perplexity(self.model, self.validation, length=LENGTH, batch_size=20).nll


def _texts(text: str) -> tuple[list[str], list[str]]:
    if text == "demo":
        held_out = corpus.held_out_documents()
        return [d.text for d in held_out["calibration"]], [d.text for d in held_out["validation"]]
    found = documents.read_documents(text).texts
    return documents.portion(found, 0.0, 0.4), documents.portion(found, 0.4, 0.6)


def settings() -> Iterator[tuple[str, Callable[[Experiment, float], float]]]:
    """Every setting of the grid, by name."""
    yield "level 2 only", lambda bench, target: bench.increase("uniform", "energy", target)
    for level1 in ("linear", "proportional"):
        yield level1, lambda bench, target, level1=level1: bench.increase(level1, "energy", target)
    for temperature, band in product((0.05, 0.1, 0.2), (None, 0.05, 0.1, 0.15)):
        name = f"softmax T={temperature} band={band}"
        yield (
            name,
            lambda bench, target, t=temperature, band=band: bench.increase(
                "softmax", "energy", target, band=band, temperature=t
            ),
        )


def choose(grid: dict[str, dict[str, list[float]]], names: list[str]) -> str:
    """Setting whose worst cell over these backbones is least."""
    return min(grid, key=lambda s: (round(max(max(grid[s][n]) for n in names), 2), sum(sum(grid[s][n]) for n in names)))


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backbones", nargs="+", metavar="NAME=MODEL:TEXT")
    parser.add_argument("--output", type=Path, default=Path("results/defaults.json"))
    given = parser.parse_args()
    places = {name: place.rsplit(":", 1) for name, place in (each.split("=", 1) for each in given.backbones)}
    grid: dict[str, dict[str, list[float]]] = {name: {} for name, _ in settings()}
    for name, (model, text) in places.items():
        bench = Experiment(model, text)
        for setting, run in tqdm(list(settings()), desc=name, disable=None):
            grid[setting][name] = [run(bench, target) / bench.uniform[target] for target in TARGETS]
    print("| setting | " + " | ".join(f"{name} {' / '.join(map(str, TARGETS))}" for name in places) + " |")
    print("|---|" + "---|" * len(places))
    for setting, row in grid.items():
        print(f"| {setting} | " + " | ".join(" / ".join(f"{cell:.2f}" for cell in row[name]) for name in places) + " |")
    chosen = {"all": choose(grid, list(places))}
    chosen |= {f"without {name}": choose(grid, [n for n in places if n != name]) for name in places if len(places) > 1}
    print(json.dumps(chosen, indent=1))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps({"targets": TARGETS, "grid": grid, "chosen": chosen}, indent=1) + "\n")


if __name__ == "__main__":
    main()
