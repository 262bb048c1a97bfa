"""Training by transformers' Trainer, with our loss, our order of examples and our checkpoints.

The Trainer provides the loop, accumulation, autocast and scaler, gradient clipping at norm 1, AdamW, the schedule, several processes, and
the state that makes a resumed run equal to the bit to an uninterrupted one. Replaced are:

    the order      fixed by the plan (`Plan.order`), so that a batch is the same however it is divided
    the loss       sum over the scored tokens of the whole batch, divided by their number: padding and micro-batches do not matter
    validation     sum over all scored tokens divided by their number (the Trainer averages the means of batches)
        checkpoints    the adapters alone, with a seal (`mgaa.recovery.job`)
    output         one progress bar, when standard error is a terminal

The Trainer's side effects (generators, verbosity, flags of the model) are undone.

Importing this module imports the Trainer.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging

from mgaa.errors import NumericalError, ResourceError
from mgaa.models.architectures import architecture_of
from mgaa.recovery.adapters import Adapter, load_adapters, tensors_of
from mgaa.recovery.attach import attach_adapters
from mgaa.recovery.curve import Curve, is_exhausted
from mgaa.recovery.examples import UNSCORED, Examples, collate
from mgaa.recovery.job import ADAPTERS, STATE, Job, read_json, read_tensors, seal, write_tensors
from mgaa.recovery.plan import Plan
from mgaa.recovery.precision import hold_precision


def train(model: PreTrainedModel, examples: Examples, validation: Examples, job: Job) -> None:
    """Train adapters on a model, from the newest checkpoint of the job to its end, and write the result; the model stays unchanged.

    Raises:
        LockedError: another process trains in the folder.
        NumericalError: a loss is not finite; the checkpoints stay.
        ResourceError: a checkpoint cannot be written.
    """
    plan = job.plan
    with ExitStack() as stack:
        stack.enter_context(_restore_model(model))
        torch.manual_seed(plan.seed)
        adapters = stack.enter_context(attach_adapters(model, plan))
        stack.enter_context(hold_precision(model, plan.precision))
        trainer = _Trainer(model, adapters, examples, validation, job)
        if trainer.is_world_process_zero():
            stack.enter_context(job.lock())
        checkpoint = trainer.newest()
        history = [] if checkpoint is None else read_json(checkpoint / STATE)["log_history"]
        if not _is_finished(history, plan, len(examples)):
            trainer.args.eval_on_start = checkpoint is None
            stack.callback(trainer.watch.close)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            history = trainer.state.log_history
        if trainer.is_world_process_zero():
            job.finish(Curve.of_history(history))
        trainer.accelerator.wait_for_everyone()


class _Ordered(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Examples in the order of the plan."""

    def __init__(self, examples: Examples, order: Int[Tensor, " s"]) -> None:
        self.examples = examples
        self.order = order.tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.examples[self.order[index]]


class _Trainer(Trainer):  # type: ignore[misc]
    """Trainer with the replacements listed in the module docstring."""

    def __init__(
        self,
        model: PreTrainedModel,
        adapters: Mapping[str, Adapter],
        examples: Examples,
        validation: Examples,
        job: Job,
    ) -> None:
        self.adapters = adapters
        self.job = job
        self.watch = _Watch(job)
        super().__init__(
            model=model,
            args=_arguments(model, len(examples), job),
            data_collator=collate,
            train_dataset=_Ordered(examples, job.plan.order(len(examples))),
            eval_dataset=validation,
            compute_loss_func=_loss,
            callbacks=[self.watch],
        )
        self.remove_callback(PrinterCallback)

    def newest(self) -> Path | None:
        """Return the checkpoint to resume from: the first process looks for it, all use the same."""
        checkpoint = self.job.checkpoint() if self.is_world_process_zero() else None
        step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        step = int(self.accelerator.reduce(torch.tensor(step, device=self.args.device)))
        return self.job.at(step) if step else None

    @torch.no_grad()
    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """Return the mean loss over the scored validation tokens; every process takes its share of the batches."""
        self.model.eval()
        size, rank, world = self.args.eval_batch_size, self.args.process_index, self.args.world_size
        starts = range(rank * size, len(self.eval_dataset), size * world)
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for start in tqdm(starts, desc="validating", leave=False, disable=True if rank else None):
            rows = [self.eval_dataset[index] for index in range(start, min(start + size, len(self.eval_dataset)))]
            batch = self._prepare_inputs(collate(rows))
            labels = batch.pop("labels")
            total[0] += _sum(self.model(**batch).logits, labels)
            total[1] += (labels != UNSCORED).sum()
        total = self.accelerator.reduce(total)
        metrics = {"eval_loss": float(total[0] / total[1])}
        _check(metrics["eval_loss"], "validation", self.state.global_step)
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        if self.args.should_save and output_dir is not None:
            write_tensors(Path(output_dir) / ADAPTERS, tensors_of(self.adapters))

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:  # torch.save raises the second when a disk is full
            if isinstance(error, RuntimeError) and not re.search(
                "PytorchStreamWriter|inline_container|file write failed", str(error)
            ):
                raise
            raise ResourceError(
                f"the checkpoint of step {self.state.global_step} cannot be written to {self.job.folder} ({error}): "
                "make room and start again; the checkpoint before it is kept"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(self.job.at(self.state.global_step))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_adapters(self.adapters, read_tensors(Path(resume_from_checkpoint) / ADAPTERS))


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Stops when a loss is not finite or validation no longer improves, records the start as the first best, and shows progress."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Find the best checkpoint again even if the folder was moved."""
        if state.best_global_step:
            state.best_model_checkpoint = str(self.job.at(state.best_global_step))
        shown = True if args.process_index else None
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="recovering", disable=shown)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Check the loss once per step, before it can reach a checkpoint."""
        loss = given["logs"].get("loss")
        if loss is not None:
            _check(loss, "training", state.global_step)
            self.bar.update()
            self.bar.set_postfix(loss=f"{loss:.3f}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Update the best validation loss, from the start on."""
        if state.global_step == 0:
            state.best_metric = given["metrics"]["eval_loss"]
        if is_exhausted(_validations(state.log_history), self.job.plan.patience):
            control.should_training_stop = True

    def close(self) -> None:
        """Restore the terminal."""
        if self.bar is not None:
            self.bar.close()


def _arguments(model: PreTrainedModel, examples: int, job: Job) -> TrainingArguments:
    plan = job.plan
    steps = plan.total(examples)
    arguments = TrainingArguments(
        output_dir=str(job.folder),
        max_steps=steps,
        per_device_train_batch_size=plan.micro_batch,
        per_device_eval_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        train_sampling_strategy="sequential",
        learning_rate=plan.rate,
        weight_decay=plan.decay,
        warmup_steps=round(plan.warmup * steps),
        lr_scheduler_type="linear",
        optim="adamw_torch",
        max_grad_norm=1.0,
        bf16=plan.precision == "bfloat16",
        fp16=plan.precision == "float16",
        use_cpu=model.device.type == "cpu",
        ddp_backend="gloo" if plan.processes > 1 and model.device.type == "cpu" else None,
        ddp_find_unused_parameters=bool(architecture_of(model.config).experts),
        seed=plan.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=plan.evaluate_every,
        save_strategy="steps",
        save_steps=plan.evaluate_every,
        save_total_limit=2,
        metric_for_best_model="loss",
        greater_is_better=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are used by several processes, never by DataParallel
    return arguments


def _loss(outputs: Any, labels: Int[Tensor, "b l"], num_items_in_batch: Tensor | int) -> Float[Tensor, ""]:
    return _sum(outputs.logits, labels) / num_items_in_batch


def _sum(logits: Float[Tensor, "b l v"], labels: Int[Tensor, "b l"]) -> Float[Tensor, ""]:
    """Return the loss of all scored tokens, each predicted from those before it; in float32 or wider."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    predictions, targets = logits[:, :-1].flatten(0, 1).to(precise), labels[:, 1:].flatten()
    return functional.cross_entropy(predictions, targets, ignore_index=UNSCORED, reduction="sum")


def _check(loss: float, what: str, step: int) -> None:
    if not np.isfinite(loss):
        raise NumericalError(
            f"The {what} loss is {loss} at step {step}, expected a finite number: lower recovery.rate, or set "
            "recovery.precision to float32 or bfloat16. The model is unchanged, and the last checkpoint is kept."
        )


def _validations(history: list[dict[str, Any]]) -> list[float]:
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


def _is_finished(history: list[dict[str, Any]], plan: Plan, examples: int) -> bool:
    """Return whether a run with this log is complete: a process may die between its last checkpoint and the result."""
    last = max((int(entry["step"]) for entry in history), default=0)
    return last >= plan.total(examples) or is_exhausted(_validations(history), plan.patience)


@contextmanager
def _restore_model(model: PreTrainedModel) -> Iterator[None]:
    """Undo the Trainer's side effects on the model after this context."""
    config = model.config.get_text_config()
    verbosity, cached = logging.get_verbosity(), config.use_cache
    restore = _generators()
    training, device = model.training, model.device
    try:
        yield
    finally:
        for mark in ("forward", "_original_forward", "_is_accelerate_prepared"):  # of autocast, on the instance
            model.__dict__.pop(mark, None)
        config.use_cache = cached
        model.train(training).to(device)
        restore()
        logging.set_verbosity(verbosity)


def _generators() -> Callable[[], None]:
    """Save the state of all random generators; calling the result restores it."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)

    return restore
