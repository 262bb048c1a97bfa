"""Handling of Ctrl-C and SIGTERM while a command still imports its modules: one line and exit code 130, as later (flows/command/cli.py).

Importing this module installs it. `python -m` imports the package of a command before the command, when `sys.argv[0]` is still `-m`; other
programs that import flows keep their signal handlers.
"""

import os
import signal
import sys
from types import FrameType


def end(number: int, frame: FrameType | None) -> None:
    """Exit at once: no step has started."""
    os.write(2, b"interrupted before the first step; run the same command to start again\n")
    os._exit(130)


if sys.argv[0] == "-m":
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, end)
