"""Recovery: brief training of a compressed model on text, so that the remaining parameters compensate those that were removed.

    plan = Plan(tune="factors", steps=300, batch=16)
    examples = from_instructions(read_instructions("alpaca.json"), tokenizer)
    curve = recover_(model, examples, validation, plan, folder="recovery")

LoRAP (arXiv 2404.09695, 3.4) trains by LoRA; so does this package, for any mixture of low-rank, pruned and dense linears
(`mgaa.recovery.lora`). Bolaco (arXiv 2405.10616) scales the leading directions of the low-rank linears by two diagonals, which keeps every
rank (`mgaa.recovery.diagonals`). The weights of the model stay frozen while small updates next to them learn (`mgaa.recovery.adapters`,
`mgaa.recovery.training`); at the end the best state by validation loss is merged into the weights (`mgaa.recovery.merging`), and no trace
of the updates remains. All state is in a folder, from which an interrupted recovery resumes with the same result (`mgaa.recovery.job`).

Needs accelerate, and for LoRA peft (`pip install 'mgaa[recovery]'`), which are imported only when training starts.
"""

import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from mgaa.errors import InputError, UsageError
from mgaa.inputs.readers import coerce_arguments, path, to_change
from mgaa.inputs.tokens import check_vocabulary
from mgaa.recovery.attach import target_names
from mgaa.recovery.curve import Curve, Point
from mgaa.recovery.examples import Examples, from_instructions, from_windows, read_instructions
from mgaa.recovery.job import Job, job_of
from mgaa.recovery.merging import merge_, updates_of
from mgaa.recovery.plan import Plan
from mgaa.recovery.precision import resolve_precision
from mgaa.recovery.processes import launch_processes

__all__ = ["Curve", "Examples", "Plan", "Point", "from_instructions", "from_windows", "read_instructions", "recover_"]


@coerce_arguments(model=to_change, folder=path)
def recover_(
    model: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, *, folder: str | Path
) -> Curve:
    """Train a compressed model in place.

    Args:
        model: has an entry in `mgaa.models.entries`; stays on its device and in its dtype, and is in evaluation mode without gradients
            afterwards. It does not change before training has succeeded.
        examples, validation: encoded with the tokenizer of the model; the second determine when training stops and which state is best.
        plan: settings of the training.
        folder: of this recovery alone; called again with the same inputs, it resumes where it was interrupted.

    Returns:
        The losses. If no validation was better than the one before training, the model stays unchanged and a warning reports it.

    Raises:
        UsageError: a package is missing, or the plan does not fit the device or the model.
        InputError: there are no examples, ids are outside the vocabulary, or the folder belongs to another recovery.
        LockedError: another process trains in the folder.
        NumericalError: a loss or a merged weight is not finite.
        ResourceError: the folder cannot be written, or a process died.
    """
    require_packages(plan)
    if model.device.type == "cuda" and model.device.index != 0:
        raise UsageError(
            f"the model is on {model.device}, expected cuda:0, where the Trainer of transformers trains: choose the GPU by the variable "
            "CUDA_VISIBLE_DEVICES"
        )
    for what, inputs in (("examples", examples), ("validation", validation)):
        _check(model, what, inputs)
    target_names(model, plan)  # refuses a model that does not fit the plan
    job = job_of(
        model,
        examples,
        validation,
        replace(plan, precision=resolve_precision(plan.precision, model.device)),
        Path(folder),
    )
    job.claim()
    if job.result() is None:
        _train(model, examples, validation, job)
    result = job.result()
    assert result is not None
    curve, tensors = result
    if tensors:
        merge_(model, updates_of(tensors, plan))
    else:
        warnings.warn(
            f"no validation was better than the one before training ({curve.before:.4f}), so the model is unchanged: "
            "lower recovery.rate, or validate on the kind of text that it is trained on",
            UserWarning,
            stacklevel=2,
        )
    model.eval().requires_grad_(False)
    return curve


def _train(model: PreTrainedModel, examples: Examples, validation: Examples, job: Job) -> None:
    if job.plan.processes > 1:
        launch_processes(model, examples, validation, job)
    else:
        from mgaa.recovery.training import train  # imports the Trainer: seconds

        train(model, examples, validation, job)


def require_packages(plan: Plan) -> None:
    """Refuse to continue without the packages that training by this plan needs.

    Raises:
        UsageError: one is not installed.
    """
    for package in ("accelerate", *["peft"] * (plan.method == "lora")):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"recovery needs {package}, which is not installed: pip install 'mgaa[recovery]'")


def _check(model: PreTrainedModel, what: str, examples: Examples) -> None:
    if len(examples) < 1 or not examples.scored:
        raise InputError(
            f"The {what} of the recovery are {len(examples)} with {examples.scored} scored tokens, expected at least one of each: "
            "give more text."
        )
    check_vocabulary(examples.ids, model.get_input_embeddings().num_embeddings)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and examples.longest > positions:
        raise UsageError(
            f"The {what} of the recovery have up to {examples.longest} tokens, the model has {positions} positions: "
            "lower their length."
        )
