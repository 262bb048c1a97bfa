"""Cost of the shapes of large models: seconds against their lower bounds, memory against its plan, block by block.

    python benchmarks/large.py --shape llama-2-7b [--blocks 2] [--samples 256] [--length 2048] [--place device|host|disk] [--stages
    calibrate]

A model of the shape with random weights in bfloat16 and few blocks is written to a temporary folder, and streamed from there through
calibration, decomposition, allocation and factorization (compression 0.2, afm, softmax and energy). All blocks of such a model cost the
same, so the time of all blocks is proportional to that of the few, printed as `extrapolated`; `--blocks` may be the full depth if the
disk has room.

A floor is the arithmetic of a stage over the rates of this device, measured at the start on square products, plus the bytes that it reads
over the rate of the disk (`mgaa.plan`, `mgaa.blocks.hardware`). Memory is the peak that torch has allocated on a CUDA device, or on a CPU
the peak of the process above its start (sampled), next to the prediction of `mgaa.plan`. On CUDA the same command runs without
changes; it has not been run there yet, so no number of a GPU is known.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

import mgaa
from benchmarks import stages
from benchmarks.effort import allocated, effort, fresh
from mgaa.blocks.hardware import Rates, free_memory, measure_rates
from mgaa.checkpoints.folder import INDEX
from mgaa.checkpoints.meta_model import load_meta_model
from mgaa.plan import plan
from mgaa.plan.layout import Layout, layout_of
from mgaa.plan.room import gigabytes
from mgaa.plan.settings import Settings, StageCost

ROOT = Path(__file__).resolve().parents[1]
COMPRESSION = 0.2
STAGES = ("calibrate", "decompose", "allocate", "factorize")


@dataclass(frozen=True)
class Shape:
    """Size of a Llama by its config; `key_value` counts heads."""

    hidden: int
    ffn: int
    heads: int
    key_value: int
    blocks: int
    vocabulary: int


SHAPES = {
    "tiny": Shape(128, 352, 4, 2, 4, 4096),
    "llama-2-7b": Shape(4096, 11008, 32, 32, 32, 32000),
    "llama-3-8b": Shape(4096, 14336, 32, 8, 32, 128256),
    "llama-2-70b": Shape(8192, 28672, 64, 8, 80, 32000),
}


@dataclass(frozen=True)
class Found:
    """Measurements of the blocks that were run: seconds and peak bytes by stage, with the rates and the free memory of the device."""

    seconds: dict[str, float]
    memory: dict[str, int]
    rates: Rates
    room: int
    device: str


def config_of(shape: Shape, blocks: int, length: int = 2048) -> LlamaConfig:
    """Config of a model of this shape, in bfloat16."""
    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value,
        vocab_size=shape.vocabulary,
        max_position_embeddings=length,
        dtype="bfloat16",
    )


def write_random(config: LlamaConfig, folder: Path, device: str) -> None:
    """Write a checkpoint of random weights, with one block in memory at a time."""
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "models" / "demo").save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    generator = torch.Generator(device).manual_seed(0)

    def random(shape: torch.Size) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator).cpu()

    files: dict[str, str] = {}
    for name in shapes:
        parts = name.split(".")
        files[name] = f"block-{parts[2]}.safetensors" if parts[1] == "layers" else "rest.safetensors"
    for file in dict.fromkeys(files.values()):
        save_file(
            {n: random(shape) for n, shape in shapes.items() if files[n] == file}, folder / file, {"format": "pt"}
        )
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")


def measured(source: Path, tokens: torch.Tensor, settings: Settings, wanted: tuple[str, ...], threads: int) -> Found:
    """Run all stages in this process."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    device = torch.device("cuda" if settings.accelerator else "cpu")
    size = min(load_meta_model(source).config.hidden_size, 4096 if settings.accelerator else 1024)
    speeds = measure_rates(device, torch.bfloat16, source, size=size)
    torch.linalg.inv(torch.eye(2, device=device))  # makes torch load what it needs on first use
    room, began = free_memory(device), allocated()
    seconds: dict[str, float] = {}
    memory: dict[str, int] = {}

    def run(name: str, work: Callable[[], None]) -> None:
        if settings.accelerator:
            torch.cuda.reset_peak_memory_stats()
        before = allocated() - began
        it = effort(lambda: (work(), _wait(settings)))
        seconds[name] = it.wall
        memory[name] = torch.cuda.max_memory_allocated() if settings.accelerator else before + it.memory

    with tempfile.TemporaryDirectory(dir=source) as scratch:
        folders = {name: Path(scratch) / name for name in STAGES}
        for folder in folders.values():
            folder.mkdir()
        statistics, spectra = folders["calibrate"], folders["decompose"]
        model, _ = mgaa.load(source, device=str(device), stream=True)
        ranks: dict[str, int] = {}

        def allocate() -> None:
            ranks.update(stages.allocated(model, statistics, spectra, folders["allocate"], compression=COMPRESSION))

        works: dict[str, Callable[[], None]] = {
            "calibrate": lambda: stages.calibrate(
                model, tokens, statistics, place=settings.hidden, batch_size=settings.batch_size
            ),
            "decompose": lambda: stages.decompose(model, statistics, spectra),
            "allocate": allocate,
            "factorize": lambda: stages.factorize(model, spectra, ranks, folders["factorize"]),
        }
        for name in wanted:
            run(name, works[name])
    return Found(seconds, memory, speeds, room, _name(device, threads))


def _wait(settings: Settings) -> None:
    if settings.accelerator:
        torch.cuda.synchronize()


def _name(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU")
    return f"{model}, {threads} threads"


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--place", choices=("device", "host", "disk"), default="device")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    given = parser.parse_args()
    shape, device = SHAPES[given.shape], "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings(
        samples=given.samples,
        length=given.length,
        batch_size=given.batch_size,
        groups=32,
        compression=COMPRESSION,
        stream=True,
        hidden=given.place,
        accelerator=device == "cuda",
    )
    wanted = tuple(name for name in STAGES if name in given.stages)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        config = config_of(shape, given.blocks, given.length)
        config.save_pretrained(source)
        layout = layout_of(load_meta_model(source))
        settings = replace(settings, room=free_memory(torch.device(device)))
        print(f"{given.shape}: {shape}\n{settings.samples} x {settings.length} tokens, {given.blocks} blocks, bfloat16")
        for stage in foreseen(layout, settings, wanted).values():
            print(f"planned: {stage.name} {gigabytes(stage.device + stage.host)}", flush=True)
        if given.plan:
            return
        disable_progress_bar()
        fresh(write_random, config, source, device)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, shape.vocabulary, (settings.samples, settings.length), generator=generator)
        found: Found = fresh(measured, source, tokens, settings, wanted, given.threads)
    show(found, layout, replace(settings, room=found.room), shape.blocks, wanted)


def foreseen(layout: Layout, settings: Settings, wanted: tuple[str, ...]) -> dict[str, StageCost]:
    """Plan of the stages that are run."""
    return {stage.name: stage for stage in plan(layout, settings) if stage.name in wanted}


def show(found: Found, layout: Layout, settings: Settings, depth: int, wanted: tuple[str, ...]) -> None:
    """Print a row for each stage of the blocks that were run, and its value at the full depth."""
    speeds, blocks = found.rates, len(layout.blocks)
    print(
        f"\n{found.device}, torch {torch.__version__}: {speeds.forward / 1e12:.2f} TFLOP/s in bfloat16, {speeds.double / 1e12:.3f} in float64, "
        f"eigenproblems {speeds.eigen / 1e9:.2f} G n^3/s, disk {speeds.read / 1e9:.1f} GB/s read, {speeds.write / 1e9:.1f} written\n"
    )
    print(
        "| stage | s | floor: arithmetic s | bytes s | s over floor | peak GB | planned GB | planned over peak "
        f"| extrapolated to {depth} blocks, s | planned GB |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    here = foreseen(layout, settings, wanted)
    whole = foreseen(replace(layout, blocks=layout.blocks[:1] * depth), settings, wanted)
    total = 0.0
    for name, seconds in found.seconds.items():
        extrapolated = seconds * depth / blocks
        total += extrapolated
        if name not in here:  # takes almost no time
            print(f"| {name} | {seconds:.2f} | | | | {found.memory[name] / 1e9:.2f} | | | {extrapolated:.1f} | |")
            continue
        arithmetic = replace(here[name], read=0, disk=0, scratch=0).seconds(speeds)
        moved = replace(here[name], operations={}, scratch=0).seconds(speeds)
        planned, deep = (_bytes(each[name], settings) for each in (here, whole))
        print(
            f"| {name} | {seconds:.2f} | {arithmetic:.2f} | {moved:.2f} | {seconds / (arithmetic + moved):.2f} "
            f"| {found.memory[name] / 1e9:.2f} | {planned / 1e9:.2f} | {planned / found.memory[name]:.2f} | {extrapolated:.0f} | {deep / 1e9:.2f} |"
        )
    print(f"\n{depth} blocks: {total:.0f} s extrapolated, {sum(found.seconds.values()):.1f} s measured for {blocks}.")


def _bytes(stage: StageCost, settings: Settings) -> int:
    """Bytes of the plan in the memory that is measured."""
    return stage.device if settings.accelerator else stage.device + stage.host


if __name__ == "__main__":
    main()
