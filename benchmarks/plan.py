"""Predicted and actual cost of a run: memory and disk, at three sizes and streamed.

    python -m benchmarks.plan [hidden,blocks,stream ...] [section.key=value ...]      default: 512,8,never 1024,6,never 2048,3,never
    2048,3,always

For each, a random LLaMA of that width runs through `flows.compress` in a process of its own, on the calibration, validation and evaluation
texts of the demo. Memory is the peak of pages that no file backs (resident minus shared), sampled every 10 ms; disk is
the peak of the run's files. The prediction is that of `flows.plan`, made before the run with the same parameters; both include the
process itself, so the ratio above it is printed too.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import psutil
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
CASES = ("512,8,never", "1024,6,never", "2048,3,never", "2048,3,always")
SMALL = [f"data.{text}.samples=32" for text in ("calibration", "validation", "evaluation")]


def backbone(folder: Path, hidden: int, blocks: int) -> Path:
    """A random LLaMA with the tokenizer of the demo, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "demo")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        dtype="float32",
    )
    place = folder / f"random-{hidden}-{blocks}"
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def measured(folder: Path, overrides: list[str]) -> tuple[int, int]:
    """Run the flow below `folder`; returns the peaks of its memory and of its files on disk."""
    command = [sys.executable, "-m", "flows.compress", "--quiet", f"--params={folder / 'params.yaml'}", *overrides]
    process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = disk = 0
    for tick in count():
        if process.poll() is not None:
            break
        try:
            memory = process.memory_info()
        except psutil.Error:
            break
        peak = max(peak, memory.rss - memory.shared)
        if tick % 20 == 0:
            disk = max(disk, bytes_below(folder / "store") + bytes_below(folder / "models"))
        time.sleep(0.01)
    if process.wait():
        sys.exit(process.stderr.read().decode())
    return peak, disk


def predicted(folder: Path, overrides: list[str]) -> tuple[int, int, int]:
    """Predicted memory of a run, that of the process alone, and predicted disk."""
    from flows.command.runner import worker_count
    from flows.parts.device import resolve_device
    from tasks.config.parameters import load_parameters
    from tasks.planning.recipes import recipes
    from tasks.planning.resources import IMPORTS, plan_run, resident_bytes

    params = load_parameters(folder / "params.yaml", overrides)
    found = plan_run(params, resolve_device(params), models=len(recipes(params)), workers=worker_count(params))
    return found.peaks.host, resident_bytes() + IMPORTS, found.peaks.disk


def prediction_in_a_process_of_its_own(folder: Path, overrides: list[str]) -> tuple[int, int, int]:
    """Prediction in a process that has loaded nothing before, as in `flows.plan`."""
    code = f"from benchmarks.plan import predicted; from pathlib import Path; import flows.compress; print(*predicted(Path({str(folder)!r}), {overrides!r}))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    memory, base, disk = map(int, output.split())
    return memory, base, disk


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder, while they come and go."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def main(arguments: list[str]) -> None:
    """Print a line for each case."""
    given = [each for each in arguments if "=" in each]
    cases = [each for each in arguments if "=" not in each] or CASES
    print(
        f"{'hidden':>6} {'blocks':>6} {'stream':>6}  {'memory predicted':>16} {'measured':>9} {'ratio':>6} {'above the process':>18}  {'disk predicted':>14} {'measured':>9} {'ratio':>6}"
    )
    for case in cases:
        hidden, blocks, stream = case.split(",")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            source = backbone(folder, int(hidden), int(blocks))
            (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
            overrides = [f"backbone.source={source}", f"backbone.stream={stream}", *SMALL, "evaluation.tasks=[]"]
            overrides += [
                "evaluation.baselines=[]",
                "evaluation.batch_size=4",
                f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
                *given,
            ]
            memory, base, disk = prediction_in_a_process_of_its_own(folder, overrides)
            peak, kept = measured(folder, overrides)
        above = (memory - base) / (peak - base)
        print(
            f"{hidden:>6} {blocks:>6} {stream:>6}  {memory / 1e9:13.2f} GB {peak / 1e9:6.2f} GB {memory / peak:6.2f} {above:18.2f}  {disk / 1e9:11.2f} GB {kept / 1e9:6.2f} GB {disk / kept:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1:])
