"""The decorator of cached steps: `f(out, store, inputs..., *, parameters)` becomes `task(store, inputs...) -> Artifact`.

    @step(kind="ratios", methods={"ratios": "mgaa.ratios"})
    def allocate_ratios(out: Path, store: Store, statistics: Artifact, *, ratios: MethodSpec, target: TargetSpec) -> None:
        ...writes files into `out`, a temporary folder; a returned dict joins the manifest as `facts`...

Prefect gets the key from its cache policy and reads the result in `store/keys/<cache key>.json`, so a hit is shown as Cached, whatever
Prefect's database contains. The record is written by the stage (tasks/cache/stage.py), not by Prefect: it must appear atomically, under the
lock of its key, and only after the artifact is on disk; Prefect's own write is neither atomic nor locked, and a full disk there is a line
in a log. For the same reason a step works without the engine (`task.fn(store, ...)`), with the same cache.

A task is sent to a worker process as the names of its module and function, and is looked up there in the worker's checkout.
"""

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from functools import update_wrapper
from importlib import import_module
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.context import TaskRunContext

from mgaa.errors import MgaaError
from tasks.cache.artifact import Artifact
from tasks.cache.executions import Execution, busy_seconds, collect_failures, record_executions
from tasks.cache.stage import Facts, Step, store_of

__all__ = ["Execution", "busy_seconds", "plain_task", "record_executions", "resuming_step", "step"]
P = ParamSpec("P")
R = TypeVar("R")


def step(
    *, kind: str, methods: Mapping[str, str] | None = None, **options: Any
) -> Callable[[Callable[Concatenate[Path, P], Facts]], Task[P, Artifact]]:
    """Make a function a cached step of this kind; `methods` names, by parameter, the folder whose file that parameter selects, by its
    value or by the field `method` of it.

    `options` go to `prefect.Task` (retries, tags, task_run_name...).
    """

    def decorate(body: Callable[Concatenate[Path, P], Facts]) -> Task[P, Artifact]:
        return cast(Task[P, Artifact], task_of(Step(body, kind, methods or {}), options))

    return decorate


def resuming_step(
    *, kind: str, **options: Any
) -> Callable[[Callable[Concatenate[Path, Path, P], Facts]], Task[P, Artifact]]:
    """Make a cached step of a body that takes hours in one piece; its second folder keeps its content when the step is interrupted."""

    def decorate(body: Callable[Concatenate[Path, Path, P], Facts]) -> Task[P, Artifact]:
        return cast(Task[P, Artifact], task_of(Step(body, kind, {}, resumes=True), options))

    return decorate


def plain_task(**options: Any) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a task of a function that runs steps without the engine; its own result is not kept. `options` go to `prefect.Task`."""
    return lambda body: NamedTask(body, cache_policy=NO_CACHE, **options)


class NamedTask(Task[P, R]):
    """A task that is pickled by reference, if it is defined in a module."""

    def __reduce__(self) -> Any:
        module, name = self.fn.__module__, self.fn.__name__
        if getattr(sys.modules.get(module), name, None) is not self:
            return super().__reduce_ex__(2)
        return find_definition, (module, name)


def find_definition(module: str, name: str) -> Any:
    """Look up a name in a module."""
    return getattr(import_module(module), name)


def task_of(stage: Step, options: Mapping[str, Any]) -> Task[..., Artifact]:
    """Prefect's task for a stage."""
    task = NamedTask(
        without_out(stage),
        cache_policy=StageKey(stage),
        result_storage=Path("/"),  # keys are absolute paths: the store is known only per call
        result_serializer="json",
        cache_result_in_memory=False,  # a record may be dropped and rewritten within a process
        **options,
    )
    task.persist_result = False  # Prefect reads the records, the stage writes them
    return task


def without_out(stage: Step) -> Callable[..., Artifact]:
    """Function for Prefect: the body's name, documentation and signature, without the folders to write to."""
    signature = inspect.signature(stage.body)
    visible = signature.replace(
        parameters=list(signature.parameters.values())[1 + stage.resumes :], return_annotation=Artifact
    )

    def call(*positional: Any, **named: Any) -> Artifact:
        bound = visible.bind(*positional, **named)
        bound.apply_defaults()
        with collect_failures():
            return stage.result(bound.arguments)

    update_wrapper(call, stage.body)
    call.__signature__ = visible  # type: ignore[attr-defined]
    return call


class StageKey(CachePolicy):
    """Prefect's cache policy: the path of the record of the cache key, whether or not it exists."""

    def __init__(self, stage: Step) -> None:
        super().__init__()
        self.stage = stage

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """Path of the record; None leaves the rest (repair, or an error) to the step itself, under its lock."""
        try:
            key, _ = self.stage.recall(inputs)
        except MgaaError:
            return None
        return str(store_of(inputs).key_path(key))


class OneLine(logging.Filter):
    """Filter for Prefect's logs: Prefect reports a failing run three times, with tracebacks; an `MgaaError` explains itself, once, in one
    line.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten the first record of an `MgaaError`, drop its repetitions, leave every other record alone."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, MgaaError):
            first = not getattr(error, "reported", False)
            error.reported = True  # type: ignore[attr-defined]
            record.msg, record.args, record.exc_info = f"{type(error).__name__}: {error}", (), None
            record.explained = True
            return first
        text = record.getMessage()
        repeated = text.startswith("Finished in state Failed") and any(
            f" {name}: " in text for name in error_names(MgaaError)
        )
        waiting = text.startswith("Finished in state NotReady")  # because of a failed task, which is reported
        record.explained = "Execution was aborted by" in text  # an interrupt: the command itself reports it
        return not repeated and not waiting


def error_names(parent: type[MgaaError]) -> list[str]:
    """Names of an error and of its subclasses."""
    return [parent.__name__, *(name for child in parent.__subclasses__() for name in error_names(child))]


for _logger in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_logger).addFilter(OneLine())
