"""Recovery: a compressed model is tuned on text for a short while, so that what is left of it makes up for what is gone.

    plan = Plan(tune="factors", steps=300, batch=16)
    examples = from_instructions(read_instructions("alpaca.json"), tokenizer)
    curve = recover_(model, examples, validation, plan, folder="recovery")

LoRAP (arXiv 2404.09695, 3.4) does it by LoRA; so does this package, for any mixture of low-rank, pruned and dense linears (lora.py). Bolaco
(arXiv 2405.10616) scales the leading directions of the low-rank ones by two diagonals, which keeps every rank (diagonals.py). The weights
of the model stay frozen while small updates beside them learn (adapters.py, training.py); at the end the best state by validation
loss is folded into the weights (merging.py), and nothing of the updates is left. All state lies in a folder, from which an
interrupted recovery goes on as if nothing had happened (job.py).

Needs accelerate, and for LoRA peft (`pip install 'mgaa[recovery]'`), which are imported when training starts and not before.
"""

import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from mgaa.errors import InputError, UsageError
from mgaa.inputs.readers import accepting, path, to_change
from mgaa.inputs.tokens import check_vocabulary
from mgaa.recovery.attach import targets
from mgaa.recovery.curve import Curve, Point
from mgaa.recovery.examples import Examples, from_instructions, from_windows, read_instructions
from mgaa.recovery.job import Job, job_of
from mgaa.recovery.merging import merge_, updates_of
from mgaa.recovery.plan import Plan
from mgaa.recovery.precision import resolve
from mgaa.recovery.processes import launch

__all__ = ["Curve", "Examples", "Plan", "Point", "from_instructions", "from_windows", "read_instructions", "recover_"]


@accepting(model=to_change, folder=path)
def recover_(
    model: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, *, folder: str | Path
) -> Curve:
    """Tune a compressed model in place.

    Args:
        model: with an entry in `mgaa.models.entries`; stays on its device and in its dtype, and is in evaluation mode without gradients
            afterwards. Nothing of it changes before training has ended well.
        examples, validation: with the tokenizer of the model; training stops and the best state is chosen by the second.
        plan: how; see there.
        folder: of this recovery alone; called again with the same inputs, it goes on where it was interrupted.

    Returns:
        The losses. If no validation was better than the one before training, the model is unchanged and a warning says so.

    Raises:
        UsageError: a package is missing, or the plan does not fit the device or the model.
        InputError: no examples, ids outside the vocabulary, or a folder of another recovery.
        LockedError: another process trains in the folder.
        NumericalError: a loss or a merged weight is not finite.
        ResourceError: the folder cannot be written, or a process died.
    """
    require(plan)
    if model.device.type == "cuda" and model.device.index != 0:
        raise UsageError(
            f"the model is on {model.device}, expected cuda:0, where the Trainer of transformers trains: choose the GPU by the variable "
            "CUDA_VISIBLE_DEVICES"
        )
    for what, given in (("examples", examples), ("validation", validation)):
        _check(model, what, given)
    targets(model, plan)  # refuses a model that it does not fit
    job = job_of(
        model, examples, validation, replace(plan, precision=resolve(plan.precision, model.device)), Path(folder)
    )
    job.open()
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
            "lower recovery.rate, or validate on the kind of text that it is tuned on",
            UserWarning,
            stacklevel=2,
        )
    model.eval().requires_grad_(False)
    return curve


def _train(model: PreTrainedModel, examples: Examples, validation: Examples, job: Job) -> None:
    if job.plan.processes > 1:
        launch(model, examples, validation, job)
    else:
        from mgaa.recovery.training import train  # imports the Trainer: seconds

        train(model, examples, validation, job)


def require(plan: Plan) -> None:
    """Refuse to go on without the packages that training by this plan needs.

    Raises:
        UsageError: one is not installed.
    """
    for package in ("accelerate", *["peft"] * (plan.method == "lora")):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"recovery needs {package}, which is not installed: pip install 'mgaa[recovery]'")


def _check(model: PreTrainedModel, what: str, given: Examples) -> None:
    if len(given) < 1 or not given.scored:
        raise InputError(
            f"The {what} of the recovery are {len(given)} with {given.scored} scored tokens, expected at least one of each: "
            "give more text."
        )
    check_vocabulary(given.ids, model.get_input_embeddings().num_embeddings)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and given.longest > positions:
        raise UsageError(
            f"The {what} of the recovery have up to {given.longest} tokens, the model has {positions} positions: "
            "lower their length."
        )
