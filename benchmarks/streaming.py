"""Cost of streaming for a model that fits into memory anyway: every stage in memory and with the blocks in their files, side by side.

    python benchmarks/streaming.py [--rounds N] [--threads N] [--hidden 1024 --ffn 2816 --heads 16 --blocks 8 ...]

A random Llama in float32 is written to a temporary folder, in shards of 100 MB. In every round each way is a process of its own: in memory;
streamed, with the hidden states in memory; streamed, with the hidden states on the disk. All stages write files, the same ones, and the
digests of all of them have to be equal. Ratios are those of one round, of which the median is printed (and the range of the sum); memory is
the peak of pages that no file backs, sampled (`benchmarks/effort.py`).
"""

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

import torch
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import mgaa
from benchmarks import stages
from benchmarks.effort import Shape, effort, fresh
from mgaa.blocks.hidden_states import Place

ROOT = Path(__file__).resolve().parents[1]
COMPRESSION = 0.2


@dataclass(frozen=True)
class Way:
    """Location of the blocks and the hidden states."""

    name: str
    streamed: bool
    place: Place


WAYS = (
    Way("in memory", streamed=False, place="device"),
    Way("streamed", streamed=True, place="device"),
    Way("streamed, hidden states on the disk", streamed=True, place="disk"),
)


@dataclass(frozen=True)
class Outcome:
    """Seconds and a digest of the files, by stage, and peak bytes above the start."""

    seconds: dict[str, float]
    digests: dict[str, str]
    memory: int


def pipeline(way: Way, shape: Shape, source: Path, threads: int) -> Outcome:
    """Run all stages in this process."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    seconds: dict[str, float] = {}
    tokens = shape.tokens()
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch:

        @contextmanager
        def stage(name: str) -> Iterator[Path]:
            folder = Path(scratch) / name
            folder.mkdir()
            began = time.perf_counter()
            yield folder
            seconds[name] = time.perf_counter() - began

        def run() -> None:
            with stage("load"):
                model, tokenizer = mgaa.load(source, device="cpu", stream=way.streamed)
            with stage("calibrate") as statistics:
                stages.calibrate(model, tokens, statistics, place=way.place)
            with stage("decompose") as spectra:
                stages.decompose(model, statistics, spectra)
            with stage("allocate") as folder:
                ranks = stages.allocated(model, statistics, spectra, folder, compression=COMPRESSION)
            with stage("factorize") as factors:
                stages.factorize(model, spectra, ranks, factors)
            with stage("write checkpoint") as checkpoint:
                stages.write(model, tokenizer, factors, checkpoint)
            del model
            with stage("perplexity") as folder:
                text = tokens.flatten()
                stages.evaluate(checkpoint, text, folder, length=shape.length, streamed=way.streamed, place=way.place)
            with stage("densify") as folder:
                stages.densify(checkpoint, folder, streamed=way.streamed)

        memory = effort(run).memory
        return Outcome(seconds, {name: digest(Path(scratch) / name) for name in seconds}, memory)


def digest(folder: Path) -> str:
    """Digest of the names and contents of all files in a folder."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser()
    for field in fields(Shape):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = vars(parser.parse_args())
    rounds, threads = given.pop("rounds"), given.pop("threads")
    shape = Shape(**given)
    print(f"{shape}, float32, compression {COMPRESSION}, {threads} threads, torch {torch.__version__}\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model"
        shape.model().save_pretrained(source, max_shard_size="100MB")
        AutoTokenizer.from_pretrained(ROOT / "models" / "demo").save_pretrained(source)
        found: list[list[Outcome]] = []
        for number in range(rounds):
            found.append([])
            for way in WAYS:
                found[-1].append(fresh(pipeline, way, shape, source, threads))
                seconds = sum(found[-1][-1].seconds.values())
                print(f"round {number + 1}, {way.name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    show(found)


def show(found: list[list[Outcome]]) -> None:
    """Print a row for each stage; exit with an error if the files differ."""

    def ratios(number: int, of: Callable[[Outcome], float]) -> list[float]:
        return [of(outcomes[number]) / of(outcomes[0]) for outcomes in found]

    def row(label: str, of: Callable[[Outcome], float], unit: float, digits: int, *, spread: bool = False) -> None:
        cells = [f"{median(of(outcomes[0]) for outcomes in found) / unit:.{digits}f}"]
        for number in range(1, len(WAYS)):
            each = ratios(number, of)
            cells.append(f"{median(each):.2f}" + (f" ({min(each):.2f} to {max(each):.2f})" if spread else ""))
        print(f"| {label} | {' | '.join(cells)} |")

    print(f"| stage | {WAYS[0].name} | {' | '.join(f'{way.name}: ratio' for way in WAYS[1:])} |")
    print("|---|" + "---|" * len(WAYS))
    for name in found[0][0].seconds:
        row(f"{name}, s", lambda outcome, name=name: outcome.seconds[name], 1, 2)  # type: ignore[misc]
    row("sum, s", lambda outcome: sum(outcome.seconds.values()), 1, 2, spread=True)
    row("peak memory, MB", lambda outcome: outcome.memory, 1e6, 0)
    kinds = {tuple(outcome.digests.items()) for outcomes in found for outcome in outcomes}
    if len(kinds) > 1:
        sys.exit(f"The files differ: {sorted({name for name, _ in set.symmetric_difference(*map(set, kinds))})}")
    print(f"\nThe files of all stages are equal, byte for byte ({len(found) * len(WAYS)} runs).")


if __name__ == "__main__":
    main()
