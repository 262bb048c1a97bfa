"""Train the embedded backbone: a small, real Llama on the docstrings of the pinned dependencies. `make demo-backbone` calls it.

    python -m demo.train                              # the committed backbone: 1.4 epochs, an hour on 2 cores, minutes on a GPU
    python -m demo.train --minutes 3 --output /tmp/b  # a quick one

The output folder receives a checkpoint that loads with `AutoModelForCausalLM.from_pretrained`, its tokenizer, and `training.json`: the data
(sha256, documents, bytes and tokens of every split), the recipe (steps, batch, rate, seed, versions) and the result (curve, losses,
the gap between train and test, bits per byte compared with those of xz and of a byte model).

The architecture is the Llama block of transformers, unchanged, because the demo must show that compression works on ordinary
checkpoints. AdamW with bfloat16 autocast (1.6 times float32 on a CPU with AMX), a short warm-up and a linear decay to zero, which
beats cosine at a fixed budget (Bergsma et al. 2025). The last fifth runs on 512 tokens, so that the stated context has been
trained. With `--steps` the result repeats on one machine; with `--minutes` the schedule follows the clock.
"""

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from demo import corpus, packing, record
from demo import tokenizer as vocabulary
from demo.plan import Plan
from mgaa.checkpoints.output_folder import place_files
from mgaa.checkpoints.ownership import check_files
from mgaa.errors import MgaaError, NumericalError, UsageError

FINAL = Path(__file__).parents[1] / "models" / "demo"
POINTS = 30
CONTEXT = 512
LONG = 0.8
"""Fraction of the training after which rows have the full context."""


@dataclass
class Progress:
    """Progress of the training, by steps or by the clock."""

    plan: Plan
    step: int = 0
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        """Completed fraction, between 0 and 1."""
        return self.step / self.plan.steps if self.plan.minutes is None else self.seconds / (60 * self.plan.minutes)

    @property
    def rate(self) -> float:
        """Current learning rate: linear warm-up, then linear decay to zero."""
        return self.plan.rate * max(
            0.0, min(self.share / self.plan.warmup, (1 - self.share) / (1 - self.plan.warmup), 1.0)
        )


def configuration() -> LlamaConfig:
    """Architecture of the backbone: 8 blocks of 192 channels, 6 query and 3 key-value heads; 4.0 million parameters."""
    return LlamaConfig(
        vocab_size=vocabulary.VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )


def loss(model: LlamaForCausalLM, rows: Tensor, *, autocast: bool = True) -> Tensor:
    """Mean negative log-likelihood in nats of the tokens after the first of each row, in bfloat16 autocast or in the model's precision."""
    rows = rows.to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, rows: Tensor, *, what: str, autocast: bool = False) -> float:
    """Mean loss over rows, 16 at a time."""
    model.eval()
    parts = tqdm(torch.split(rows, 16), desc=what, leave=False, disable=None)
    total = sum(float(loss(model, part, autocast=autocast)) * len(part) for part in parts)
    model.train()
    return total / len(rows)


def fit(
    model: LlamaForCausalLM, encoded: Sequence[Tensor], validation: Tensor, plan: Plan
) -> tuple[list[list[float]], int]:
    """Train in place; returns the curve (step, train loss since the last point, validation loss) and the number of steps."""
    optimizer = _optimizer(model, plan)
    compute = torch.compile(loss, dynamic=False) if plan.compile else loss
    progress, curve, recent = Progress(plan), list[list[float]](), list[float]()
    with tqdm(
        total=plan.steps if plan.minutes is None else None, desc="training the demo backbone", disable=None
    ) as bar:
        for rows in _rows(encoded, progress):
            recent.append(_step(model, optimizer, compute(model, rows), progress))
            bar.update()
            bar.set_postfix(loss=f"{recent[-1]:.3f}")
            if progress.share * POINTS >= len(curve) + 1 or progress.share >= 1:
                average = sum(recent) / len(recent)
                curve.append(
                    [
                        progress.step,
                        round(average, 4),
                        round(evaluate(model, validation, what="validating", autocast=True), 4),
                    ]
                )
                tqdm.write(
                    f"step {progress.step}, {progress.seconds:.0f} s: train {curve[-1][1]:.4f}, validation {curve[-1][2]:.4f}"
                )
                recent.clear()
    return curve, progress.step


def _rows(encoded: Sequence[Tensor], progress: Progress) -> Iterator[Tensor]:
    plan = progress.plan
    short = packing.batches(encoded, batch=plan.batch, length=plan.length, seed=plan.seed)
    long = packing.batches(encoded, batch=plan.batch * plan.length // CONTEXT, length=CONTEXT, seed=plan.seed + 1)
    while progress.share < 1:
        yield next(short if progress.share < LONG else long)


def _step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, value: Tensor, progress: Progress) -> float:
    for group in optimizer.param_groups:
        group["lr"] = progress.rate
    value.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    progress.step += 1
    if not torch.isfinite(value):
        raise NumericalError(
            f"The training loss is {float(value.detach())} at step {progress.step}, expected a finite number: lower --rate."
        )
    return float(value.detach())


def _optimizer(model: LlamaForCausalLM, plan: Plan) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [each for each in model.parameters() if each.ndim == 2]
    gains = [each for each in model.parameters() if each.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.95), fused=True)


def check(plan: Plan) -> None:
    """Refuse a plan that cannot run.

    Raises:
        UsageError: no steps, no time, a rate that is not positive, or no compiler.
    """
    if plan.steps < 1 or (plan.minutes is not None and plan.minutes <= 0) or plan.rate <= 0:
        raise UsageError(
            f"Got {plan.steps} steps, {plan.minutes} minutes, rate {plan.rate}; each given must be above 0."
        )
    if plan.compile and not torch.cuda.is_available() and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UsageError("No C++ compiler on the path, but torch.compile needs one: install g++, or pass --no-compile.")


def train(plan: Plan, output: Path) -> None:
    """Read the text, learn the tokenizer, train, save, measure what was saved, and write the record."""
    check(plan)
    check_files(output, record.WRITTEN)
    start = time.monotonic()
    documents = corpus.splits()
    tokenizer = vocabulary.train((each.text for each in documents["train"]), context=CONTEXT)
    encoded = {name: packing.encode(tokenizer, each) for name, each in documents.items()}
    torch.manual_seed(plan.seed)
    model = AutoModelForCausalLM.from_config(configuration(), attn_implementation="eager").to(
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    rows = packing.rows(encoded["validation"], plan.length)
    curve, steps = fit(model, encoded["train"], rows[:: max(1, len(rows) // 64)], plan)
    output.mkdir(parents=True, exist_ok=True)
    with place_files(output) as draft:
        model.to(torch.bfloat16).save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    saved = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32).to(model.device)
    rows_of = {name: packing.rows(each, plan.length) for name, each in record.recorded_documents(encoded).items()}
    losses = {name: evaluate(saved, each, what=f"{name} loss") for name, each in rows_of.items()}
    seconds = time.monotonic() - start
    record.write(
        output, plan, documents, encoded, curve=curve, steps=steps, losses=losses, seconds=seconds, device=model.device
    )


def main() -> None:
    """Read the command line."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m demo.train", description="Train the embedded backbone.")
    parser.add_argument("--steps", type=int, default=plan.steps, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="train for this long instead")
    parser.add_argument("--rate", type=float, default=plan.rate, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=plan.seed, help="seed of weights and order (default: %(default)s)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler, 1.4 times faster"
    )
    parser.add_argument("--output", type=Path, default=FINAL, help="folder of the result (default: models/demo)")
    given = parser.parse_args()
    plan = Plan(steps=given.steps, minutes=given.minutes, rate=given.rate, seed=given.seed, compile=given.compile)
    try:
        train(plan, given.output)
    except MgaaError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
