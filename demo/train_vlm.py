"""Train the embedded vision-language model: a small, real LLaVA on drawn scenes and docstrings. `make demo-vlm-backbone` calls it.

    python -m demo.train_vlm                                                          # without easy-VQA
    python -m demo.train_vlm --easy-vqa vqa/train --easy-vqa-test vqa/test            # the committed one

Vision tower and projector learn first (`tower.py`), then everything together: each step takes a batch of dialogues about images
(`dialogues.py`, where each question is read as if it were alone) and a batch of docstrings of the demo's train split, so
that the language model keeps its language. Scenes have one thing at first, then two, then up to four, since attending to the right place
is easiest to learn where there is only one. The rate is low for so small a model: at three times the rate the language model lost its
abilities, above all copying from what is similar, and answered from the questions alone.

The loss is that of answers with their `</s>` and of docstring tokens. AdamW with a linear warm-up and a linear decay to zero, all by
steps, so that the result repeats on one machine. In float32 and without `torch.compile`: on 2 cores bfloat16 autocast halved the speed
of the tower, and neither it nor compiling made the rest faster.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import AutoTokenizer, GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor

from demo import corpus, dialogues, easy_vqa, packing, scenes, tower, vlm, vlm_record
from demo.dialogues import Rows
from demo.record import WRITTEN
from demo.scenes import Example
from demo.vlm_plan import POINTS, Plan
from mgaa.checkpoints.output_folder import place_files
from mgaa.checkpoints.ownership import check_files
from mgaa.errors import MgaaError, NumericalError, UsageError

FINAL = Path(__file__).parents[1] / "models" / "demo-vlm"


def text_loss(model: LlavaForConditionalGeneration, rows: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of the tokens after the first of each row."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def fit(
    model: LlavaForConditionalGeneration,
    reader: LlavaProcessor,
    texts: Sequence[Tensor],
    easy: Sequence[Example],
    validation: Sequence[Example],
    plan: Plan,
) -> list[list[float]]:
    """Train in place; returns the curve: step, loss of answers and of text since the last point, share of correct validation answers."""
    optimizer = _optimizer(model, plan)
    curve, recent = list[list[float]](), list[Tensor]()
    with tqdm(total=plan.steps, desc="training the demo vision-language model", disable=None) as bar:
        for step, (rows, text) in enumerate(_batches(reader, texts, easy, plan), start=1):
            losses = [dialogues.loss(model, rows), *([] if text is None else [text_loss(model, text)])]
            recent.append(_step(model, optimizer, losses, step, plan))
            bar.update()
            if step % max(1, plan.steps // POINTS) == 0 or step == plan.steps:
                right = vlm_record.accuracy(model, reader, validation)
                curve.append(
                    [step, *(round(each, 4) for each in torch.stack(recent).nanmean(0).tolist()), round(right, 4)]
                )
                tqdm.write(f"step {step}: answers {curve[-1][1]}, text {curve[-1][2]}, validation {right:.1%} right")
                recent.clear()
    return curve


def _batches(
    reader: LlavaProcessor, texts: Sequence[Tensor], easy: Sequence[Example], plan: Plan
) -> Iterator[tuple[Rows, Tensor | None]]:
    source = dialogues.Source(Random(f"dialogues {plan.seed}"), easy)
    rows = packing.batches(texts, batch=plan.text_batch, length=plan.text_length, seed=plan.seed)
    for step in range(plan.steps):
        text = next(rows) if plan.reads(step) else None
        yield dialogues.encode(reader, source.take(plan.batch, plan.turns, most=plan.most(step))), text


def _step(
    model: LlavaForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    losses: Sequence[Tensor],
    step: int,
    plan: Plan,
) -> Tensor:
    share = step / plan.steps
    for group in optimizer.param_groups:
        group["lr"] = plan.rate * min(share / plan.warmup, (1 - share) / (1 - plan.warmup))
    value = losses[0] + plan.text_weight * sum(losses[1:], torch.zeros(()))
    value.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not torch.isfinite(value):
        raise NumericalError(
            f"The training loss is {float(value.detach())} at step {step}, expected a finite number: lower --rate."
        )
    return torch.stack([*(each.detach() for each in losses), torch.tensor(torch.nan)])[:2]


def _optimizer(model: LlavaForConditionalGeneration, plan: Plan) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [each for each in model.parameters() if each.ndim >= 2]
    others = [each for each in model.parameters() if each.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.95), fused=True)


def check(plan: Plan) -> None:
    """Refuse a plan that cannot run.

    Raises:
        UsageError: no steps, or a rate that is not positive.
    """
    if plan.steps < 1 or plan.tower_steps < 1 or plan.rate <= 0:
        raise UsageError(
            f"Got {plan.steps} steps, {plan.tower_steps} steps of the tower and rate {plan.rate}; each must be above 0."
        )


def train(
    plan: Plan, output: Path, easy: Path | None = None, easy_test: Path | None = None, start_from: Path | None = None
) -> None:
    """Draw and read the data, train, save, measure what was saved, and write the record."""
    check(plan)
    check_files(output, WRITTEN)
    start = time.monotonic()
    questions = [] if easy is None else easy_vqa.read(easy)
    asked = [] if easy_test is None else easy_vqa.read(easy_test)
    documents = corpus.splits()
    torch.manual_seed(plan.seed)
    reader = vlm.processor()
    texts = {name: packing.encode(vlm.tokenizer(), documents[name]) for name in ("train", "test")}
    as_before = packing.encode(AutoTokenizer.from_pretrained(vlm.BACKBONE), documents["test"])
    model = (
        vlm.build(reader)
        if start_from is None
        else LlavaForConditionalGeneration.from_pretrained(start_from, dtype=torch.float32)
    )
    seen = [] if start_from else _first_stage(model, plan)
    curve = fit(model, reader, texts["train"], questions, scenes.examples("validation", 150), plan)
    seconds = time.monotonic() - start
    save(model, reader, output)
    vlm_record.write(
        output,
        plan,
        documents=documents,
        test_texts=(texts["test"], as_before),
        easy=questions,
        easy_test=asked,
        curves={"tower": seen, "joint": curve},
        before=None if start_from is None else json.loads((start_from / "training.json").read_text()),
        seconds=seconds,
    )


def _first_stage(model: LlavaForConditionalGeneration, plan: Plan) -> list[list[float]]:
    return tower.fit(
        model.model.vision_tower,
        model.model.multi_modal_projector,
        tower.word_embeddings(model.get_input_embeddings().weight.detach().clone(), vlm.tokenizer()),
        steps=plan.tower_steps,
        batch=plan.tower_batch,
        rate=plan.tower_rate,
        seed=plan.seed,
    )


def save(model: LlavaForConditionalGeneration, reader: LlavaProcessor, output: Path) -> None:
    """Write the weights in bfloat16, the configuration, the processor with its tokenizer, and the generation settings."""
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.text_config.bos_token_id,
        eos_token_id=model.config.text_config.eos_token_id,
        pad_token_id=reader.tokenizer.pad_token_id,
    )
    output.mkdir(parents=True, exist_ok=True)
    with place_files(output) as draft:
        model.to(torch.bfloat16).save_pretrained(draft)
        reader.save_pretrained(draft)


def main() -> None:
    """Read the command line."""
    plan = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m demo.train_vlm", description="Train the embedded vision-language model."
    )
    parser.add_argument(
        "--steps", type=int, default=plan.steps, help="optimizer steps of the joint training (default: %(default)s)"
    )
    parser.add_argument(
        "--tower-steps",
        type=int,
        default=plan.tower_steps,
        help="steps of the tower alone before (default: %(default)s)",
    )
    parser.add_argument("--rate", type=float, default=plan.rate, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=plan.seed, help="seed of weights and data (default: %(default)s)")
    parser.add_argument(
        "--easy-vqa", type=Path, metavar="FOLDER", help="easy-VQA's train part, used as additional training data"
    )
    parser.add_argument(
        "--easy-vqa-test", type=Path, metavar="FOLDER", help="easy-VQA's test part, used for an additional evaluation"
    )
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="resume from the result of an earlier training")
    parser.add_argument("--output", type=Path, default=FINAL, help="folder of the result (default: models/demo-vlm)")
    given = parser.parse_args()
    own = {"steps": given.steps, "tower_steps": given.tower_steps, "rate": given.rate, "seed": given.seed}
    plan = Plan(**own, goes_on=given.start is not None)
    try:
        train(plan, given.output, given.easy_vqa, given.easy_vqa_test, given.start)
    except MgaaError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
