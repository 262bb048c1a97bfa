"""The command of a module that does several things: `python -m flows.store size`, `python -m flows.lineage show models/compressed`.

    if __name__ == "__main__":
        sys.exit(main({"list": list_, "size": size}))

A verb is a function. Its first parameter is what it reads of `params.yaml` (`Parameters`, or `Operation` for those that compute
nothing and need no torch); the others are words and options of the command line, which typer reads from the signature. Overrides
`section.key=value` may stand anywhere, and exit codes are those of every command (flows/command/cli.py).
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flows.command.cli import answered, parse
from mgaa.errors import UsageError
from tasks.config.parameters import Operation, Parameters, load, load_operation

LOADERS: dict[type, Callable[..., Any]] = {Operation: load_operation, Parameters: load}
OVERRIDE = re.compile(r"--params=.|(case|method|[a-z_]+(\.\w+)+)=")


def main(verbs: Mapping[str, Callable[..., None]], argv: Sequence[str] | None = None) -> int:
    """Run the verb that the command line names; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    given = [text for text in arguments if OVERRIDE.match(text)]
    words = [text for text in arguments if text not in given and text != "--debug"]
    return answered(lambda: command(verbs, given, words), debug=debug)


def command(verbs: Mapping[str, Callable[..., None]], given: Sequence[str], words: Sequence[str]) -> None:
    """Hand the words to typer.

    Raises:
        UsageError: no such verb or option, or a word too many.
    """
    import typer

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    for name, verb in verbs.items():
        app.command(name)(loaded(verb, given))
    app.callback(help=inspect.getmodule(next(iter(verbs.values()))).__doc__)(lambda: None)
    try:
        app(list(words), standalone_mode=False, prog_name="")
    except typer.TyperException as error:
        raise UsageError(f"{str(error).rstrip('.?')}: --help shows what there is.") from None


def loaded(verb: Callable[..., None], given: Sequence[str]) -> Callable[..., None]:
    """The verb without its first parameter, which is read from `params.yaml` and the overrides."""
    first, *rest = inspect.signature(verb).parameters.values()

    def call(**named: Any) -> None:
        verb(LOADERS[first.annotation](*parse(given)), **named)

    call.__doc__ = verb.__doc__
    call.__signature__ = inspect.Signature(rest)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in rest}
    return call
