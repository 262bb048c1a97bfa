"""The streams of a command, whatever they are: closed, full, cut off by `| head`, or of an encoding without the signs that we print.

None of these is a mistake, and none may change what a run has done. A reader that goes away ends a command quietly, with the exit code of
a program that SIGPIPE ended.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mgaa.errors import MgaaError, ResourceError


class CutOffError(MgaaError):
    """Nobody reads any more."""

    exit_code = 141
    """128 + SIGPIPE, as a shell gives it."""


class Output(io.TextIOWrapper):
    """Stdout that fails with errors of ours, so that a pipe of another kind which breaks is not taken for it."""

    def write(self, text: str) -> int:
        """As every stream.

        Raises:
            CutOffError: the reader is gone.
            ResourceError: there is no room.
        """
        if text == "":  # a question of click, what kind of a stream this is
            return 0
        with lost(self):
            return super().write(text)

    def flush(self) -> None:
        """As every stream; raises as `write`."""
        with lost(self):
            super().flush()


@contextmanager
def lost(stream: Output) -> Iterator[None]:
    """Turn a stream that cannot be written into an error of ours, and lead it nowhere, so that it fails once."""
    try:
        yield
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise CutOffError("nobody reads the output any more") from error
        raise ResourceError(
            f"what was to be shown cannot be written ({error.strerror}): make room, or show it elsewhere. Finished steps are kept."
        ) from error


def open_streams() -> None:
    """Give a process whose streams are closed ones that lead nowhere, before a file of ours gets their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def guard_stdout() -> None:
    """Make stdout an `Output`, which shows what its encoding lacks as `?`; one that a program has put in its place stays."""
    own: Any = sys.stdout
    if type(own) is io.TextIOWrapper:
        errors = own.errors if own.errors == "surrogateescape" and own.encoding == "utf-8" else "replace"
        sys.stdout = Output(
            own.buffer, own.encoding, errors, line_buffering=own.line_buffering, write_through=own.write_through
        )


def complain(text: str) -> None:
    """One line on stderr, if that can be written."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
