"""Tokens per second of a pruned model and of the dense one, greedy generation, both models in one run, the runs alternating.

    python benchmarks/generation.py [--hidden 1024] [--blocks 8] [--compression 0.5] [--rounds 7] [--latency]

A random Llama of the given shape (speed does not depend on the weights), compressed by LoRAP and, for comparison, by MGAA on random tokens.
Prints the median ratio of the tokens per second to the dense model's in the same round, with its range, at batch 1 (decoding) and for
the prompt alone (prefill).

With `--latency` it measures a profile of this device first, compresses by MGAA with parameters and with latency as the objective, at one
token and at those of the prompt, saves and loads every model, and prints next to each ratio the predicted one, of the linear layers alone.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import mgaa
from mgaa.allocation.device_profile import measure
from mgaa.allocation.latency import load_latency, total_seconds
from mgaa.compress import LORAP
from mgaa.models.architectures import matrices_of
from mgaa.models.lowrank import low_rank_layers

NEW = 48
PROMPT = 256


def model(hidden: int, blocks: int) -> LlamaForCausalLM:
    """Build the random Llama, the same at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=int(hidden * 2.6875) // 8 * 8,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=1024,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def decode(given: Any) -> Callable[[], int]:
    """Generate `NEW` tokens after a short prompt."""
    prompt = torch.arange(16)[None]

    def run() -> int:
        given.generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
        return NEW

    return run


def prefill(given: Any) -> Callable[[], int]:
    """Process a prompt of `PROMPT` tokens."""
    prompt = torch.arange(PROMPT)[None]

    def run() -> int:
        given(input_ids=prompt, use_cache=False, logits_to_keep=1)
        return PROMPT

    return run


@torch.inference_mode()
def speed(run: Callable[[], int]) -> float:
    """Tokens per second."""
    began = time.perf_counter()
    return run() / (time.perf_counter() - began)


def by_latency(dense: LlamaForCausalLM, make: Callable[[], LlamaForCausalLM], compression: float) -> dict[str, Any]:
    """Models by name, saved and loaded, each with the fraction removed and the predicted speed-up of its linear layers, by tokens."""
    tokens = torch.randint(0, 4096, (4, 128), generator=torch.Generator().manual_seed(0))
    tokenizer = AutoTokenizer.from_pretrained("models/demo")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latency.json"
        measure(matrices_of(dense), dtype=torch.float32, tokens=(1, PROMPT)).save(path)
        profile = load_latency(path, dtype="float32")
        at = {
            "MGAA": {},
            **{f"MGAA, latency at {n}": {"objective": "latency", "profile": path, "tokens": n} for n in (1, PROMPT)},
        }
        for name, objective in at.items():
            try:
                given = make()
                done = mgaa.compress_(given, tokens, compression=compression, ranks={"method": "energy", **objective})
            except mgaa.UsageError as error:
                print(f"{name}: {error}")
                continue
            saved = total_seconds(
                [profile.seconds(x, y.rank) for x, y in zip(matrices_of(dense), done.matrices, strict=True)]
            )
            mgaa.save(given, tokenizer, Path(folder) / "model")
            loaded, _ = mgaa.load(Path(folder) / "model", device="cpu")
            print(
                f"{name}: {len(low_rank_layers(loaded))} of {len(done.matrices)} matrices low-rank, predicted seconds {saved}"
            )
            found[name] = loaded, done.compression, {n: each["dense"] / each["compressed"] for n, each in saved.items()}
    return found


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser()
    for name, default in (("hidden", 1024), ("blocks", 8), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compression", type=float, default=0.5)
    parser.add_argument("--latency", action="store_true")
    given = parser.parse_args()
    tokens = torch.randint(0, 4096, (4, 128), generator=torch.Generator().manual_seed(0))
    dense = model(given.hidden, given.blocks)
    print(
        f"hidden {given.hidden}, {given.blocks} blocks, {sum(p.numel() for p in dense.parameters()):,} parameters, float32, {torch.get_num_threads()} threads"
    )
    print(
        "| model | linears removed | decode, tokens/s | over dense | prefill, tokens/s | over dense |\n|---|---|---|---|---|---|"
    )
    rows = {"dense": dense}
    removed = {"dense": 0.0}
    saved: dict[str, dict[str, float]] = {}
    if given.latency:
        for name, (each, share, faster) in by_latency(
            dense, lambda: model(given.hidden, given.blocks), given.compression
        ).items():
            rows[name], removed[name], saved[name] = each, share, faster
    for name, settings in () if given.latency else (("LoRAP", LORAP), ("MGAA", {})):
        rows[name] = model(given.hidden, given.blocks)
        removed[name] = mgaa.compress_(rows[name], tokens, compression=given.compression, **settings).compression
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(given.rounds + 1):
        for name, each in rows.items():
            for kind, make in (("decode", decode), ("prefill", prefill)):
                found.setdefault((name, kind), []).append(speed(make(each)))

    def predicted(kind: str, name: str) -> str:
        return f", predicted of linears {saved[name][tokens_of[kind]]:.2f}" if name in saved else ""

    tokens_of = {"decode": "1", "prefill": str(PROMPT)}
    for name in rows:
        cells = []
        for kind in ("decode", "prefill"):
            ours, theirs = found[name, kind][1:], found["dense", kind][1:]  # the first round warms up
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            cells += [
                f"{statistics.median(ours):.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}){predicted(kind, name)}",
            ]
        print(f"| {name} | {removed[name]:.3f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
