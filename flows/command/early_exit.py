"""Ctrl-C and SIGTERM in the seconds in which a command imports its modules: one line and exit code 130, as later (flows/command/cli.py).

Importing this module is all it takes. `python -m` imports the package of a command before the command, and says so in `sys.argv`;
whoever imports flows otherwise keeps the signals as they are.
"""

import os
import signal
import sys
from types import FrameType


def end(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun, so nothing has to be ended in order."""
    os.write(2, b"interrupted before anything began; the same command starts again\n")
    os._exit(130)


if sys.argv[0] == "-m":
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, end)
