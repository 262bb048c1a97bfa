"""Several processes that train one model, each on its share of every batch; gradients are averaged (torch's DistributedDataParallel).

The job is in the folder as files: the model as a checkpoint, the examples as safetensors, the plan in job.json. `torchrun` starts `python
-m mgaa.recovery <folder>` once per process; accelerate, inside the Trainer, finds the others by the environment that torchrun sets.
(`accelerate launch` does the same, but reads the user's defaults.) The first process writes the result, which the caller reads back. An
error of a process is written to `error.json` and raised again by the caller.

On GPUs each process takes one; on the CPU they share the cores. The result equals that of a single process up to the order of sums, and up
to dropout, which every process draws separately.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from mgaa import errors
from mgaa.checkpoints.format import describe
from mgaa.checkpoints.load import class_of
from mgaa.errors import InputError, MgaaError, ResourceError, UsageError
from mgaa.recovery.examples import Examples
from mgaa.recovery.job import JOB, Job, model_digest, read_job, read_json, write_json

HANDOVER, ERROR = ".handover", "error.json"
"""Folder of the job that exists while the processes run, and the file with the error of one of them."""
MODEL, EXAMPLES, VALIDATION = (
    f"{HANDOVER}/model",
    f"{HANDOVER}/examples.safetensors",
    f"{HANDOVER}/validation.safetensors",
)


def launch_processes(model: PreTrainedModel, examples: Examples, validation: Examples, job: Job) -> None:
    """Train in `plan.processes` processes and wait for them; the result is in the folder of the job.

    Raises:
        UsageError: there are fewer GPUs than processes.
        ResourceError: the model cannot be written, or a process died without reporting an error.
        MgaaError: a process raised it.
    """
    if model.device.type == "cuda" and torch.cuda.device_count() < job.plan.processes:
        raise UsageError(
            f"recovery.processes is {job.plan.processes}, but there are {torch.cuda.device_count()} GPUs: "
            "each process needs one; lower it"
        )
    shutil.rmtree(job.folder / HANDOVER, ignore_errors=True)
    _store(model, job.folder / MODEL)
    examples.save(job.folder / EXAMPLES)
    validation.save(job.folder / VALIDATION)
    (job.folder / ERROR).unlink(missing_ok=True)
    try:
        code = _run(job, model.device)
    finally:
        shutil.rmtree(job.folder / HANDOVER, ignore_errors=True)
    if code:
        _raise(job.folder, code)


def run_process(folder: Path, device: str) -> None:
    """Run one process of a training.

    Raises:
        MgaaError: as in training; it is also written to `error.json`, for the caller.
    """
    from mgaa.recovery.training import train

    try:
        logging.disable_progress_bar()
        job = read_job(folder)
        config = AutoConfig.from_pretrained(folder / MODEL, local_files_only=True)
        model = class_of(config).from_pretrained(folder / MODEL, dtype="auto", local_files_only=True).eval()
        if model_digest(model) != job.model:
            raise InputError(
                f"the model does not survive being saved and loaded: {folder / MODEL} holds other tensors than those "
                f"of {folder / JOB}; set recovery.processes to 1"
            )
        model.to(f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device)
        train(model, Examples.load(folder / EXAMPLES), Examples.load(folder / VALIDATION), job)
    except MgaaError as error:
        write_json(folder / ERROR, {"kind": type(error).__name__, "message": str(error)})
        raise


def _store(model: PreTrainedModel, folder: Path) -> None:
    describe(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # transformers only logs that it is a file
        model.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise ResourceError(f"the model cannot be written to {folder} ({error}): make room") from error


def _run(job: Job, device: torch.device) -> int:
    """Return the exit code; an interruption also ends the processes."""
    processes = job.plan.processes
    module = ["-m", "mgaa.recovery", str(job.folder), device.type]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *module]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with subprocess.Popen(command, env={"OMP_NUM_THREADS": threads} | os.environ) as running:
        try:
            return running.wait()
        except BaseException:
            running.terminate()  # torchrun ends its workers
            running.wait()
            raise


def _raise(folder: Path, code: int) -> None:
    if not (folder / ERROR).exists():
        raise ResourceError(
            f"the training processes ended with code {code}, see their messages above; make room (memory, GPUs, disk) "
            f"and start again with the folder {folder}: completed steps are kept"
        )
    content = read_json(folder / ERROR)
    raise getattr(errors, content["kind"])(content["message"])
