"""A step without its engine: what its result depends on, and how it is computed once.

The cache key is the sha256 of everything the result depends on: task, kind, inputs by content, parameters, code (tasks/cache/source.py),
versions and flags (tasks/cache/environment.py). Never the store: the same key finds the same result in any store, and in a copy of one.
Never the place of a file either: a parameter that is a `File` enters by its content.

Two runs that want the same step: the second waits on a lock of the operating system, which dies with its holder, then takes the result.
A step that takes hours in one piece may say that it `resumes`: it has a folder in the store, by its key, that outlives a killed run, so
what it finds there was made from the same inputs, parameters and code.

A damaged artifact or record is quarantined under that lock, reported, and rebuilt. The record of a key is written last, whole, and
under the lock; so whoever sees it sees a finished result, with or without the lock.
"""

import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mgaa.blocks.memory import release_memory
from mgaa.boundary import is_out_of_memory
from mgaa.errors import InputError, LockedError, ResourceError
from tasks.cache import environment, source
from tasks.cache.artifact import Artifact, DamagedError, Store
from tasks.cache.atomic import disk_errors
from tasks.cache.devices import place_arguments
from tasks.cache.executions import Execution, peak_rss, record_execution
from tasks.cache.manifest import digest

Facts = dict[str, Any] | None


class File(str):
    """The path of a file, as a parameter of a step: the body reads the file, the cache key holds its sha256."""

    def content(self) -> str:
        """The digest that the key holds, computed with every key.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            return f"sha256:{hashlib.sha256(Path(self).read_bytes()).hexdigest()}"
        except OSError as error:
            raise InputError(f"The file {str(self)!r} cannot be read ({error.strerror}): check the path.") from error


@dataclass(frozen=True)
class Step:
    """A step's body, with what its key is made of."""

    body: Callable[..., Facts]
    kind: str
    methods: Mapping[str, str]
    resumes: bool = False

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.body.__name__

    def roots(self, arguments: Mapping[str, Any]) -> list[str]:
        """Where the step's code begins (tasks/cache/source.py): its body, and the modules of the selected methods."""
        names = {name: getattr(arguments[name], "method", arguments[name]) for name in self.methods}
        chosen = [source.method_module(folder, names[name]) for name, folder in self.methods.items()]
        return [f"{source.module_of(self.body)}:{self.name}", *chosen]

    def identity(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Everything the result depends on; the cache key is the sha256 of it."""
        roots = self.roots(arguments)
        inputs, parameters = split_arguments(self.name, arguments)
        return {
            "task": self.name,
            "kind": self.kind,
            "inputs": inputs,
            "parameters": parameters,
            "code": source.code_of(*roots),
            **environment.environment(source.packages(*roots)),
        }

    def recall(self, arguments: Mapping[str, Any]) -> tuple[str, Artifact | None]:
        """The cache key, and the sound artifact it gave, if any.

        Raises:
            DamagedError: the artifact or the record of its key.
            ResourceError: this worker has no part in the store of the run, or `store.remote` cannot be used.
        """
        key, store = digest(self.identity(arguments)), store_of(arguments)
        if store.home is not None:
            store.home.check(store.path)
        artifact = store.recall(key)
        if artifact is not None:
            now = time.time()
            self.note(store, arguments, key, artifact, reused=True, start=now, end=now)
        return key, artifact

    def result(self, arguments: Mapping[str, Any]) -> Artifact:
        """The artifact of these arguments: reused where it is there and sound, else computed."""
        store, stage = store_of(arguments), self.identity(arguments)
        key = digest(stage)
        try:
            if (artifact := self.recall(arguments)[1]) is not None:
                return artifact
        except DamagedError:
            pass  # looked at again, and repaired, under the lock
        remove_leftovers_once(store)
        with lock_key(store, key, self.name):
            try:
                if (artifact := self.recall(arguments)[1]) is not None:
                    return artifact
            except DamagedError as damage:
                store.forget(key, damage)
            return self.execute(store, key, stage, arguments)

    def execute(self, store: Store, key: str, stage: Mapping[str, Any], arguments: Mapping[str, Any]) -> Artifact:
        """Run the body into a temporary folder, seal it, and record its key."""
        with disk_errors(store.path), store.draft_folder(self.kind) as out:
            began, start = datetime.now(UTC), time.perf_counter()
            unfinished = store.path / "unfinished" / key
            if self.resumes:
                unfinished.mkdir(parents=True, exist_ok=True)
            with memory_errors(self.name), place_arguments(arguments) as given:
                facts = self.body(out, *[unfinished] * self.resumes, **given)
            release_memory()
            seconds = time.perf_counter() - start
            ended = began + timedelta(seconds=seconds)  # by one clock: the other may be set while the body runs
            record = {
                **{name: stage[name] for name in ("task", "inputs", "parameters", "code", "flags")},
                "key": key,
                "sources": source.sources(*self.roots(arguments)),
                **environment.origin(),
                **{"start": began.isoformat(), "end": ended.isoformat(), "seconds": seconds},
                "peak_rss": peak_rss(),
                "facts": facts or {},
            }
            artifact = store.seal(out, self.kind, record)
            store.remember(key, artifact, stage)
            shutil.rmtree(unfinished, ignore_errors=True)  # not before: until here nothing else holds the result
        times = {"start": began.timestamp(), "end": ended.timestamp()}
        self.note(store, arguments, key, artifact, reused=False, **times)
        return artifact

    def note(self, store: Store, arguments: Mapping[str, Any], key: str, artifact: Artifact, **how: Any) -> None:
        """Tell the recorder of the run."""
        roots = tuple(self.roots(arguments))
        record_execution(store, Execution(self.name, key, artifact, **how, peak_rss=peak_rss(), roots=roots))


@contextmanager
def memory_errors(task: str) -> Iterator[None]:
    """Turn a device or a process that has run out of memory into a `ResourceError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"Step {task!r} ran out of memory ({str(error).splitlines()[0] if str(error) else 'no more given'}): lower "
            "statistics.batch_size, evaluation.batch_size or recovery.micro_batch, leave blocks and hidden states on the disk "
            "(backbone.stream=always, backbone.hidden=disk), or compute on the CPU with backbone.device=cpu. "
            "Finished steps are kept."
        ) from error


def split_arguments(task: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a step as inputs (artifacts, by content) and parameters (plain values); the store is neither."""
    given = {name: value for name, value in arguments.items() if not isinstance(value, Store)}
    inputs = {name: manifest_input(value) for name, value in given.items() if holds_artifacts(value)}
    parameters = {
        name: plain_parameter(value, f"{task}({name}=...)") for name, value in given.items() if name not in inputs
    }
    return inputs, parameters


def holds_artifacts(value: Any) -> bool:
    """Whether an argument is an artifact or a list of them."""
    many = isinstance(value, list | tuple) and bool(value)
    return isinstance(value, Artifact) or (many and all(isinstance(item, Artifact) for item in value))


def manifest_input(value: Any) -> Any:
    """An input as manifests name it: `{kind, digest}`, or a list of those."""
    if isinstance(value, Artifact):
        return {"kind": value.kind, "digest": value.digest}
    return [manifest_input(item) for item in value]


def plain_parameter(value: Any, where: str) -> Any:
    """A parameter as JSON, a dataclass by its fields; what has no canonical form is a mistake in the flow, not in the configuration."""
    if isinstance(value, File):
        return value.content()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain_parameter(getattr(value, each.name), where) for each in fields(value)}
    if isinstance(value, list | tuple):
        return [plain_parameter(item, where) for item in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: plain_parameter(item, where) for name, item in value.items()}
    raise TypeError(f"{where} is a {type(value).__name__}: a step takes artifacts and plain values (JSON) only.")


def store_of(arguments: Mapping[str, Any]) -> Store:
    """The one store among the arguments."""
    found = [value for value in arguments.values() if isinstance(value, Store)]
    if len(found) != 1:
        raise TypeError(f"A step takes exactly one Store, not {len(found)}.")
    return found[0]


@cache
def remove_leftovers_once(store: Store) -> None:
    """Clear, once per process, what killed runs left in the store."""
    store.remove_leftovers()


@contextmanager
def lock_key(store: Store, key: str, task: str) -> Iterator[None]:
    """Hold a cache key; the lock is the operating system's and ends with the process, however that ends."""
    path = store.path / "locks" / f"{key}.lock"
    with disk_errors(store.path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, fallback_to_soft=False)
        try:
            lock.acquire(timeout=store.lock_timeout)
        except Timeout as error:
            raise LockedError(
                f"Step {task!r} (key {key[:12]}) is being computed by {path.read_text() or 'another process'}; waited "
                f"{store.lock_timeout:g} s. Wait for it or stop it, or raise store.lock_timeout, and start again."
            ) from error
    try:
        with disk_errors(store.path):
            path.write_text(
                f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            )
        yield
    finally:
        lock.release()
