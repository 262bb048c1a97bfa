"""Entry point of one of several training processes, started by `mgaa.recovery.processes`."""

import sys
from pathlib import Path

from mgaa.errors import MgaaError
from mgaa.recovery.processes import run_process

if __name__ == "__main__":
    try:
        run_process(Path(sys.argv[1]), sys.argv[2])
    except MgaaError as error:
        sys.exit(error.exit_code)
