"""Flows: each module is an ordered sequence of steps, and a command (`python -m flows.compress`).

Importing the package sets defaults of the environment. It happens here and not in a command because Prefect, MLflow and OpenMP read them
once, on import, and workers import flows without passing through a command. A value that is set already is kept; but
requests to this machine (Prefect's own server, MLflow's) never go through a proxy, whatever the environment says.
"""

import os
from pathlib import Path
from urllib.request import getproxies

from flows.command import early_exit  # noqa: F401  (before the imports that take seconds)
from flows.command.streams import open_streams
from tasks.config.parameters import checkout_of

ENVIRONMENT = {
    "PREFECT_HOME": str(
        checkout_of(Path(__file__).resolve().parents[1]) / ".prefect"
    ),  # not in a DVC experiment's copy
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # 7 to 17 s on a quiet machine
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # the web interface shows everything, the terminal shows progress
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # nothing phones home
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow LAPACK down up to 100 times next to another busy process
}

open_streams()
LOOPBACK = ("localhost", "127.0.0.1", "::1")

for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

_direct = [host for host in getproxies().get("no", "").split(",") if host.strip()]
os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(
    [*_direct, *(host for host in LOOPBACK if host not in _direct)]
)
