"""Standard streams that are closed, full, cut off by `| head`, or in an encoding without the characters we print.

None of these may change what a run has done. If the reader goes away, the command ends quietly, with the exit code of a program ended by
SIGPIPE.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mgaa.errors import MgaaError, ResourceError


class CutOffError(MgaaError):
    """The reader of stdout is gone."""

    exit_code = 141
    """128 + SIGPIPE, as in a shell."""


class Output(io.TextIOWrapper):
    """Stdout that raises errors of its own, so that other broken pipes are not mistaken for it."""

    def write(self, text: str) -> int:
        """Write as any text stream does.

        Raises:
            CutOffError: the reader is gone.
            ResourceError: the disk is full.
        """
        if text == "":  # click probes the kind of stream this way
            return 0
        with stream_errors(self):
            return super().write(text)

    def flush(self) -> None:
        """Flush as any text stream does; raises as `write`."""
        with stream_errors(self):
            super().flush()


@contextmanager
def stream_errors(stream: Output) -> Iterator[None]:
    """Translate a failed write into `CutOffError` or `ResourceError`, and redirect the stream to /dev/null, so that it fails only once."""
    try:
        yield
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise CutOffError("the reader of the output is gone") from error
        raise ResourceError(
            f"the output cannot be written ({error.strerror}): free disk space, or redirect it elsewhere. Completed steps are cached."
        ) from error


def open_streams() -> None:
    """Open closed standard streams on /dev/null, before another file takes their descriptors."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def guard_stdout() -> None:
    """Make stdout an `Output`, which prints characters missing from its encoding as `?`; a replaced stdout is left alone."""
    own: Any = sys.stdout
    if type(own) is io.TextIOWrapper:
        errors = own.errors if own.errors == "surrogateescape" and own.encoding == "utf-8" else "replace"
        sys.stdout = Output(
            own.buffer, own.encoding, errors, line_buffering=own.line_buffering, write_through=own.write_through
        )


def print_error(text: str) -> None:
    """Print a line on stderr if it can be written."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
