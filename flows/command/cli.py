"""The command of a flow: overrides in, one message and an exit code out.

    if __name__ == "__main__":
        sys.exit(main(compress))

Exit codes tell a scheduler what to do without reading text: 0 done, 2 usage or configuration, 3 bad input, 4 numerical, 5 resource,
6 locked, 130 interrupted, 141 the reader of the output is gone; 1 is a mistake of ours and shows its traceback.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped]

from flows.command.streams import CutOffError, complain, guard_stdout
from mgaa.errors import MgaaError, UsageError
from tasks.config import messages, method_options
from tasks.config.parameters import Parameters, load

FLAGS = """  --params=FILE  the parameters, by default params.yaml
  --debug        show where an error was raised
  --quiet        do not print the result
  --help         show this

A text is what is typed, whatever it looks like (in quotes, which the shell has to leave, as YAML reads it); null is nothing, where a key
may be null; numbers are decimal; a switch is true or false. Lists and sections are YAML: 'evaluation.tasks=[a, b]'."""


def main(
    flow: Callable[[Parameters], Any],
    argv: Sequence[str] | None = None,
    *,
    show: Callable[[Parameters], None] | None = None,
) -> int:
    """Run `flow` on `params.yaml` with the overrides of the command line, then `show` its result; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        return answered(lambda: print(usage(flow)))
    debug = "--debug" in arguments
    if not sys.stderr.isatty():
        hide_bars()
    from flows.command.runner import run

    def act() -> None:
        parameters = load(*parse([text for text in arguments if text not in ("--debug", "--quiet")]))
        run(flow, parameters)
        if show is not None and "--quiet" not in arguments:
            show(parameters)

    return answered(act, debug=debug)


def answered(act: Callable[[], None], *, debug: bool = False) -> int:
    """Do what a command does; a failure that explains itself is one line on stderr and its exit code."""
    guard_stdout()
    try:
        with interruptible(), told_once():
            act()
            sys.stdout.flush()
    except CutOffError as error:
        return error.exit_code
    except MgaaError as error:
        if debug:
            traceback.print_exc()
        complain(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted; finished steps are kept, the same command goes on")
        return 130
    return 0


def hide_bars() -> None:
    """Our own progress bars are off where nobody watches; those of transformers have to be told."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def parse(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """The file of parameters, and the overrides."""
    path = Path("params.yaml")
    overrides = []
    for text in arguments:
        if text.startswith("--params="):
            path = Path(text.removeprefix("--params=")).expanduser()
        elif text.startswith("-"):
            raise UsageError(
                f"{text} is no option: expected --params=FILE, --debug, --quiet, --help or section.key=value."
            )
        else:
            overrides.append(text)
    return path, overrides


def usage(flow: Callable[[Parameters], Any]) -> str:
    """What `--help` shows: the flow, the keys, the methods."""
    summary = (flow.__doc__ or "").strip().partition("\n")[0]
    keys = "\n".join(messages.reference(Parameters))
    methods = "\n".join(method_options.reference())
    command = f"python -m flows.{flow.__name__} [section.key=value ...]"
    return f"{command}\n{summary}\n\n{FLAGS}\n\n{keys}\n\nMethods and their options:\n{methods}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run in order, the second one at once; the store is sound either way."""
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupt(number: int, frame: FrameType | None) -> None:
    """The first signal."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    raise KeyboardInterrupt


def stop(number: int, frame: FrameType | None) -> None:
    """The second signal: bodies that run in threads are not waited for, and Prefect's own server goes with the run."""
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    os._exit(130)


@contextmanager
def told_once() -> Iterator[None]:
    """The message of an `MgaaError` goes to the terminal at the end; Prefect's line about it goes to its interface only."""
    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(unexplained)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(unexplained)


def unexplained(record: logging.LogRecord) -> bool:
    """Whether a record is about something else than an error that explains itself."""
    return not getattr(record, "explained", False)
