"""The command of a module with several subcommands: `python -m flows.store size`, `python -m flows.lineage show models/compressed`.

    if __name__ == "__main__":
        sys.exit(main({"list": list_, "size": size}))

A subcommand is a function. Its first parameter is what it reads of `params.yaml` (`Parameters`, or `Operation` if it computes nothing); the
others are arguments and options, which typer reads from the signature. Overrides `section.key=value` may appear anywhere, and exit codes
are those of every command (flows/command/cli.py).
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flows.command.cli import parse_arguments, run_command
from mgaa.errors import UsageError
from tasks.config.parameters import Operation, Parameters, load_operation, load_parameters

LOADERS: dict[type, Callable[..., Any]] = {Operation: load_operation, Parameters: load_parameters}
OVERRIDE = re.compile(r"--params=.|(case|method|[a-z_]+(\.\w+)+)=")


def main(verbs: Mapping[str, Callable[..., None]], argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that the command line names; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    given = [text for text in arguments if OVERRIDE.match(text)]
    words = [text for text in arguments if text not in given and text != "--debug"]
    return run_command(lambda: run_typer(verbs, given, words), debug=debug)


def run_typer(verbs: Mapping[str, Callable[..., None]], given: Sequence[str], words: Sequence[str]) -> None:
    """Let typer parse the words and call the subcommand.

    Raises:
        UsageError: unknown subcommand or option, or too many arguments.
    """
    import typer

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    for name, verb in verbs.items():
        app.command(name)(bind_parameters(verb, given))
    app.callback(help=inspect.getmodule(next(iter(verbs.values()))).__doc__)(lambda: None)
    try:
        app(list(words), standalone_mode=False, prog_name="")
    except typer.TyperException as error:
        raise UsageError(f"{str(error).rstrip('.?')}: see --help.") from None


def bind_parameters(verb: Callable[..., None], given: Sequence[str]) -> Callable[..., None]:
    """Bind the first parameter of a subcommand to `params.yaml` with the overrides."""
    first, *rest = inspect.signature(verb).parameters.values()

    def call(**named: Any) -> None:
        verb(LOADERS[first.annotation](*parse_arguments(given)), **named)

    call.__doc__ = verb.__doc__
    call.__signature__ = inspect.Signature(rest)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in rest}
    return call
