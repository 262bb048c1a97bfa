"""Small steps: one counts, one combines by a method, one waits for input, one writes a large file, one fails."""

import os
import sys
from importlib import import_module
from pathlib import Path

from mgaa.errors import NumericalError
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


def log(name: str) -> None:
    """Log that a body ran."""
    with Path("executed.log").open("a") as file:
        file.write(f"{name}\n")


@step(kind="numbers")
def count(out: Path, store: Store, *, upto: int) -> None:
    """The numbers below `upto`."""
    log("count")
    (out / "numbers.txt").write_text("\n".join(str(number) for number in range(upto)))


@step(kind="sums", methods={"method": "mgaa.sums"})
def combine(out: Path, store: Store, numbers: Artifact, *, method: str) -> None:
    """One number from many."""
    log("combine")
    text = (store.folder(numbers) / "numbers.txt").read_text()
    result = import_module(f"mgaa.sums.{method}").combine([int(number) for number in text.split()])
    (out / "sum.txt").write_text(str(result))


@step(kind="long")
def take_long(out: Path, store: Store) -> None:
    """Half of the result, then the rest when a line arrives on standard input (with WAIT set)."""
    log("take_long")
    (out / "first.txt").write_text("first")
    if "WAIT" in os.environ:
        print("half", flush=True)
        sys.stdin.readline()
    (out / "second.txt").write_text("second")


@step(kind="large")
def write_much(out: Path, store: Store, *, size: int) -> None:
    """A file of `size` bytes."""
    (out / "large.bin").write_bytes(bytes(size))


@step(kind="broken")
def fail(out: Path, store: Store, numbers: Artifact) -> None:
    """Half of a result, then an error that explains itself."""
    (out / "half.txt").write_text("half")
    raise NumericalError("Weight 3 is NaN: expected finite weights; set backbone.dtype to float32.")
