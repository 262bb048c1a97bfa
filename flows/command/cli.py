"""The command of a flow: overrides in, one message and an exit code out.

    if __name__ == "__main__":
        raise SystemExit(main("flows.compress:compress"))

A flow module has these lines at its top, before its imports, and names itself: `--help` and a wrong parameter answer before Prefect, torch
and the steps are imported, which takes seconds, and the flow is imported under its own name, as workers import it.

Exit codes tell a scheduler what to do without parsing text: 0 success, 2 usage or configuration, 3 bad input, 4 numerical failure,
5 resources, 6 locked, 130 interrupted, 141 the reader of the output is gone. 1 is a bug and comes with its traceback.
"""

import ast
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped]

from flows.command.streams import CutOffError, guard_stdout, print_error
from mgaa.errors import MgaaError, UsageError
from tasks.config import compatibility, messages, method_options
from tasks.config.compatibility import check_compatibility
from tasks.config.parameters import Parameters, load_parameters

FLAGS = """  --params=FILE  file of parameters (default: params.yaml)
  --debug        show tracebacks of errors
  --quiet        do not print the result
  --help         show this help

Strings are taken as typed; in quotes that reach the program they are YAML strings. null means no value where a key allows it. Numbers are
decimal, switches true or false. Lists and sections are YAML: 'evaluation.tasks=[a, b]'."""


Command = str | Callable[[Parameters], Any]
"""A function of the parameters, or where it is: `module:function`."""


def main(flow: Command, argv: Sequence[str] | None = None, *, show: Command | None = None) -> int:
    """Run `flow` on `params.yaml` with the overrides of the command line, then `show` its result; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        return run_command(lambda: print(usage(flow)))
    parameters: Parameters
    function: Callable[[Parameters], Any]

    def load() -> None:
        nonlocal parameters, function
        words = [text for text in arguments if text not in ("--debug", "--quiet")]
        parameters = load_parameters(*parse_arguments(words))
        check_compatibility(parameters.flat(), name_of(flow))
        function = import_function(flow)
        if not sys.stderr.isatty():
            hide_bars()

    def act() -> None:
        from flows.command.runner import run_flow

        run_flow(function, parameters)
        if show is not None and "--quiet" not in arguments:
            import_function(show)(parameters)

    return run_command(act, load=load, debug="--debug" in arguments)


def import_function(command: Command) -> Callable[..., Any]:
    """The function that a command names."""
    found: Callable[..., Any] = resolve_name(command) if isinstance(command, str) else command
    return found


def run_command(act: Callable[[], None], *, load: Callable[[], None] = lambda: None, debug: bool = False) -> int:
    """Run the body of a command: an `MgaaError` becomes one line on stderr and its exit code.

    Args:
        load: runs first, outside the handling of interrupts: a signal ends the process at once (flows/command/early_exit.py).
    """
    guard_stdout()
    try:
        load()
        with handle_interrupts(), report_once():
            act()
            sys.stdout.flush()
    except CutOffError as error:
        return error.exit_code
    except MgaaError as error:
        if debug:
            traceback.print_exc()
        print_error(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        print_error("interrupted: completed steps are cached; run the same command to resume")
        return 130
    return 0


def hide_bars() -> None:
    """Disable the progress bars of transformers; ours are off anyway where stderr is not a terminal."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def parse_arguments(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Split the command line into the file of parameters and the overrides."""
    path = Path("params.yaml")
    overrides = []
    for text in arguments:
        if text.startswith("--params="):
            path = Path(text.removeprefix("--params=")).expanduser()
        elif text.startswith("-"):
            raise UsageError(
                f"unknown option {text}: expected --params=FILE, --debug, --quiet, --help or section.key=value."
            )
        else:
            overrides.append(text)
    return path, overrides


def usage(flow: Command) -> str:
    """The text of `--help`: the flow, the parameters, the methods, and what excludes what."""
    command = f"python -m flows.{name_of(flow)} [section.key=value ...]"
    summary = " ".join(documentation_of(flow).strip().partition("\n\n")[0].split())
    keys = "\n".join(messages.parameters_reference(Parameters))
    methods = "\n".join(method_options.options_reference())
    excluded = "\n".join(compatibility.combinations_reference())
    return (
        f"{command}\n{summary}\n\n{FLAGS}\n\n{keys}\n\nMethods and their options:\n{methods}\n\n"
        f"Settings that exclude each other:\n{excluded}"
    )


def name_of(command: Command) -> str:
    """The name of a flow: that of its module, or of the function."""
    return command.partition(":")[0].rpartition(".")[2] if isinstance(command, str) else command.__name__


def documentation_of(command: Command) -> str:
    """The docstring of a command, read from its file without importing it."""
    if not isinstance(command, str):
        return command.__doc__ or ""
    module, _, name = command.partition(":")
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    body = ast.parse(Path(spec.origin).read_bytes()).body
    (function,) = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)
    return ast.get_docstring(function) or ""


@contextmanager
def handle_interrupts() -> Iterator[None]:
    """End the run in order on the first Ctrl-C or SIGTERM, at once on the second; the store is sound either way."""
    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle the first signal."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    raise KeyboardInterrupt


def stop(number: int, frame: FrameType | None) -> None:
    """Handle the second signal: exit without waiting for steps in threads, and terminate Prefect's own server."""
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    os._exit(130)


@contextmanager
def report_once() -> Iterator[None]:
    """Keep Prefect's log line about an `MgaaError` off the terminal, where the command prints its message at the end."""
    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(is_unexplained)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_unexplained)


def is_unexplained(record: logging.LogRecord) -> bool:
    """Tell whether a log record is about anything but an `MgaaError`."""
    return not getattr(record, "explained", False)
