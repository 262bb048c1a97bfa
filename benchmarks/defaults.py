"""Safe defaults of both levels for every backbone: a grid on validation text, and the choice that would be made without each backbone.

    python benchmarks/defaults.py NAME=MODEL:TEXT [NAME=MODEL:TEXT ...] [--output grid.json]

Of every text the first 40 % of the documents calibrate and the next 20 % validate; the rest is never read here. `TEXT` is a file, or
`demo`. A cell is the increase of log-perplexity over dense, as a share of uniform's at the same budget, refill and factorizer (`afm`):
below 1 is better than uniform. The choice minimises the worst cell at 0.2 and 0.4, ties broken by the mean; leave-one-out repeats the
choice without one backbone and reads the result on it. Spectra are computed once per backbone, so a cell costs slicing and one validation
pass. A backbone of more than 30 million linear parameters is evaluated in bfloat16, on 20 windows instead of 120.
"""

import argparse
import json
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import mgaa
from demo import corpus
from mgaa import factors, ranks, ratios
from mgaa.decomposition.linalg import plain_energies
from mgaa.evaluation.perplexity import perplexity
from mgaa.inputs import tokens
from mgaa.models.architectures import matrices_of
from mgaa.statistics.calibration import stream_statistics
from tasks.data import documents

TARGETS = (0.2, 0.4)
LENGTH = 256
LARGE = 30_000_000


class Experiment:
    """One backbone with its spectra: measures any allocation on the validation text."""

    def __init__(self, model: str, text: str) -> None:
        self.model, tokenizer = mgaa.load(model, dtype="float32")
        calibration, validation = _texts(text)
        measured = tokens.windows(tokens.pack(calibration, tokenizer).ids, LENGTH, samples=128)
        self.matrices = matrices_of(self.model)
        large = sum(matrix.parameters for matrix in self.matrices) > LARGE
        stream = tokens.pack(validation, tokenizer).ids
        self.validation = tokens.windows(stream, LENGTH)[: 20 if large else 120].flatten()
        self.dense = {m.name: self.model.get_submodule(m.name).weight.detach().clone() for m in self.matrices}
        self.cosines: dict[bool, dict[str, float]] = {True: {}, False: {}}
        self.spectra: dict[str, mgaa.decomposition.linalg.Spectrum] = {}
        for index, block in enumerate(stream_statistics(self.model, measured)):
            names = {m.local: m.name for m in self.matrices if m.block == index}
            found = factors.decompose_block({local: self.dense[name] for local, name in names.items()}, block, "afm")
            self.spectra |= {names[local]: spectrum for local, spectrum in found.items()}
            for residual, cosines in self.cosines.items():
                cosines |= {f"{index}.{name}": each for name, each in block.compared(residual=residual).items()}
        energies = {name: spectrum.energies for name, spectrum in self.spectra.items()}
        plain = {name: plain_energies(weight) for name, weight in self.dense.items()}
        self.ladders = {
            "metric": ranks.ladders_of(self.matrices, energies, centred=True),
            "plain": ranks.ladders_of(self.matrices, energies, centred=True, plain=plain),
        }
        if large:
            self.model.to(torch.bfloat16)
        self.nll = self._nll()
        self.uniform = {target: self.increase("uniform", "uniform", target) for target in TARGETS}

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Linear parameters by sublayer."""
        groups = ranks.by_sublayer(self.ladders["metric"]).items()
        return {name: sum(ladder.matrix.parameters for ladder in group) for name, group in groups}

    def increase(
        self,
        level1: str,
        level2: str,
        target: float,
        *,
        band: float | str | None = None,
        residual: bool = True,
        spectrum: str = "metric",
        power: float | None = None,
        **options: float,
    ) -> float:
        """Increase of the validation NLL over dense."""
        ladders = self.ladders[spectrum]
        reach, cosines = ranks.reach_of(ladders), self.cosines[residual]
        given = ratios.allocate_ratios(
            level1, cosines, self.parameters, reach, compression=target, band=band, **options
        )
        rule = {} if power is None else {"power": power}
        for outcome in ranks.allocate_ranks(level2, ladders, given, compression=target, **rule):
            name, linear = outcome.matrix.name, self.model.get_submodule(outcome.matrix.name)
            linear.weight.data, linear.bias = self.dense[name].to(self.model.dtype), None
            if outcome.rank is not None:
                made = factors.factorize(self.dense[name], None, self.spectra[name], outcome.rank)
                linear.weight.data = (made.B @ made.A).to(self.model.dtype)
                linear.bias = torch.nn.Parameter(made.bias.to(self.model.dtype), requires_grad=False)
        return self._nll() - self.nll

    def _nll(self) -> float:
        return perplexity(self.model, self.validation, length=LENGTH, batch_size=20).nll


def _texts(text: str) -> tuple[list[str], list[str]]:
    if text == "demo":
        held_out = corpus.held_out_documents()
        return [d.text for d in held_out["calibration"]], [d.text for d in held_out["validation"]]
    found = documents.read_documents(text).texts
    return documents.portion(found, 0.0, 0.4), documents.portion(found, 0.4, 0.6)


SETTINGS: dict[str, dict[str, Any]] = {
    "level 1 only": {"level2": "uniform"},
    "level 2 only": {"level1": "uniform", "band": None},
    "level 2 across the model": {"level2": "global_energy"},
    **{
        f"softmax T={temperature} band={band}": {"temperature": temperature, "band": band}
        for temperature, band in product((0.05, 0.1, 0.2), (None, 0.05, 0.1, 0.15, 0.2, "auto"))
    },
    **{
        f"{level1} band={band}": {"level1": level1, "band": band}
        for level1, band in product(("linear", "proportional"), (0.1, 0.2))
    },
    **{f"residual=false band={band}": {"residual": False, "band": band} for band in (0.1, 0.2)},
    **{f"power={power}": {"power": power} for power in (0.5, 1.5, 2.0)},
    "spectrum=plain": {"spectrum": "plain"},
    "spectrum=plain across the model": {"spectrum": "plain", "level2": "global_energy"},
}
"""The grid: what differs from both levels with temperature 0.1 and band 0.1."""


def arguments(setting: str) -> dict[str, Any]:
    """Arguments of `Experiment.increase`; of the maps, softmax alone has a temperature."""
    given = {"level1": "softmax", "level2": "energy", "temperature": 0.1, "band": 0.1, **SETTINGS[setting]}
    if given["level1"] != "softmax":
        del given["temperature"]
    return given


def choose(grid: dict[str, dict[str, list[float]]], names: list[str]) -> str:
    """Setting whose worst cell over these backbones is least."""
    return min(grid, key=lambda s: (round(max(max(grid[s][n]) for n in names), 2), sum(sum(grid[s][n]) for n in names)))


def fill(grid: dict[str, dict[str, list[float]]], name: str, model: str, text: str, output: Path) -> None:
    """Measure the missing cells of a backbone, and keep each as soon as it is there."""
    missing = [setting for setting in SETTINGS if name not in grid.setdefault(setting, {})]
    if not missing:
        return
    bench = Experiment(model, text)
    for setting in tqdm(missing, desc=name, disable=None):
        options = arguments(setting)
        grid[setting][name] = [bench.increase(target=target, **options) / bench.uniform[target] for target in TARGETS]
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"targets": TARGETS, "grid": grid}, indent=1) + "\n")


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backbones", nargs="+", metavar="NAME=MODEL:TEXT")
    parser.add_argument(
        "--output", type=Path, default=Path("results/defaults.json"), help="cells in it are not measured again"
    )
    given = parser.parse_args()
    places = {name: place.rsplit(":", 1) for name, place in (each.split("=", 1) for each in given.backbones)}
    grid: dict[str, dict[str, list[float]]] = (
        json.loads(given.output.read_text())["grid"] if given.output.exists() else {}
    )
    for name, (model, text) in places.items():
        fill(grid, name, model, text, given.output)
    print("| setting | " + " | ".join(f"{name} {' / '.join(map(str, TARGETS))}" for name in places) + " |")
    print("|---|" + "---|" * len(places))
    for setting in SETTINGS:
        cells = (" / ".join(f"{cell:.2f}" for cell in grid[setting][name]) for name in places)
        print(f"| {setting} | " + " | ".join(cells) + " |")
    chosen = {"all": choose(grid, list(places))}
    chosen |= {f"without {name}": choose(grid, [n for n in places if n != name]) for name in places if len(places) > 1}
    print(json.dumps(chosen, indent=1))


if __name__ == "__main__":
    main()
