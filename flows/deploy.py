"""Deploy to Prefect's server: which flows run on a schedule, and when.

    python -m flows.deploy [section.key=value ...]

`prefect.yaml` has the deployments without any number; its build step `settings` reads the section `schedule` of `params.yaml`, so that
`prefect deploy --all` does the same. This command first checks that there is a server, creates the work pool if it is missing, and passes
the overrides that it was called with to every run.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.command.cli import parse_arguments, run_command
from mgaa.boundary import translate_errors, via_proxy
from mgaa.errors import ResourceError, UsageError
from mgaa.masking import masked
from tasks.config.parameters import load_parameters

POOL = "mgaa"
"""Work pool of processes that `prefect.yaml` names."""
FILE, PARAMS, OVERRIDES = "prefect.yaml", "MGAA_PARAMS", "MGAA_OVERRIDES"
PATIENCE = 10.0
"""Seconds for the server to answer."""


def settings(params: str = "", overrides: str = "") -> dict[str, Any]:
    """Build step of `prefect.yaml`: values of its placeholders.

    Args:
        params: file of parameters; by default `params.yaml`.
        overrides: `section.key=value`, quoted as in a shell.
    """
    path, words = Path(params or "params.yaml").absolute(), shlex.split(overrides or "")
    schedule = load_parameters(path, words).schedule
    return {
        "cron": schedule.cron.model_dump(),
        "active": {name: name in schedule.active for name in type(schedule.cron).model_fields},
        "timezone": schedule.timezone,
        "overrides": words,
        "params": str(path),
        "folder": str(Path.cwd()),
    }


def deploy(path: Path, overrides: list[str]) -> None:
    """Create or update the work pool and every deployment of `prefect.yaml` in the working folder, and show them.

    Raises:
        UsageError: a parameter is wrong or holds a secret, there is no `prefect.yaml`, or no server is set.
        ResourceError: the server does not answer, or Prefect refuses.
    """
    load_parameters(path, overrides)
    if secret := next((word for word in overrides if masked(word) != word), None):
        raise UsageError(
            f"{masked(secret)} holds a secret, which Prefect would keep in its database with the deployment: expected it in the "
            "environment of the worker, or in params.yaml."
        )
    if not Path(FILE).is_file():
        raise UsageError(f"There is no {FILE} in {Path.cwd()}: run in the project's folder.")
    refused = "the server at PREFECT_API_URL does not do what a deployment asks"
    with server() as client, translate_errors(refused, "set the address of a server of Prefect", kind=ResourceError):
        make_pool(client)
        told = {PARAMS: str(path), OVERRIDES: shlex.join(overrides)}
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
        done = subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ResourceError(f"Prefect refuses {FILE}: {' '.join((done.stdout + done.stderr).split())}")
        show(client)


def server() -> Any:
    """Open a client of the server, after checking that it answers.

    Raises:
        UsageError: no server is set.
        ResourceError: it does not answer.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url, remedy = (
        PREFECT_API_URL.value(),
        "start one with `prefect server start`, and set PREFECT_API_URL to its address",
    )
    if not url:
        raise UsageError(
            f"No server of Prefect is set, and schedules run only with one: {remedy}, such as http://127.0.0.1:4200/api."
        )
    unanswered = f"PREFECT_API_URL is {masked(url)}, where no server of Prefect answers{via_proxy(url)}"
    with translate_errors(unanswered, remedy, kind=ResourceError):
        httpx.get(f"{url}/health", timeout=PATIENCE).raise_for_status()
    return get_client(sync_client=True)


def make_pool(client: Any) -> None:
    """Create the work pool if it is missing."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))


def show(client: Any) -> None:
    """Print when each deployment runs."""
    for deployment in sorted(client.read_deployments(), key=lambda each: str(each.name)):
        if deployment.work_pool_name == POOL:
            for each in deployment.schedules:
                state = "" if each.active else "  (off: by hand)"
                print(f"scheduled/{deployment.name:<10} {each.schedule.cron:<12} {each.schedule.timezone}{state}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        return run_command(lambda: print(__doc__))
    return run_command(lambda: deploy(*parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
