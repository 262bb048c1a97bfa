"""What tests share: an environment that neither reads nor writes the user's, one Prefect server, and a small project to run and break.

The environment is set before anything imports Prefect or torch, which read it once. Each of several test processes
(`make test`) reads this file: nothing but `MGAA_TESTS_SHARED` is shared between them, and each has one thread, for they share the cores.
"""

import fcntl
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

LONG = ("tests/flows/", "tests/guides/", "/tracking/", "/anchoring/", "test_dvc.py", "test_sync.py", "test_quality.py")
IDLE = (
    *("SCHEDULER", "LATE_RUNS", "TRIGGERS", "EVENT_PERSISTER", "FOREMAN"),
    *("PAUSE_EXPIRATIONS", "REPOSSESSOR", "CANCELLATION_CLEANUP", "CLEANUP_RECONCILER"),
)
"""Services of Prefect's server that look for work which no flow of a test has; where schedules are tested, a server of their own runs."""
HOME = tempfile.mkdtemp(prefix="mgaa-tests-")
os.environ.setdefault("MGAA_TESTS_SHARED", HOME)  # of all test processes: those that pytest-xdist starts inherit it
os.environ |= {"PREFECT_HOME": HOME, "HF_HUB_OFFLINE": "1", "PREFECT_LOGGING_TO_API_ENABLED": "false"}
os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
os.environ["RAY_AUTH_MODE"] = "disabled"  # else Ray writes a token into the home folder

# pytest-xdist's processes ignore it, and what a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before the library: what the library is the first to import misses the bytecode cache below jaxtyping's import hook.
import torch  # noqa: E402, F401
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: E402, F401

from tests.support import shapes  # noqa: E402

shapes.install()

import flows  # noqa: E402, F401  (its defaults of the environment)
from tests.support.processes import Project, copy_project  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs flows and servers first: a test process takes whole files, and a long one that is taken last would run alone at the end."""
    items.sort(
        key=lambda item: not (is_slow(item.getparent(pytest.Module)) or any(name in item.nodeid for name in LONG))
    )


def pytest_collection_finish() -> None:
    """Modules and tests live to the end: what collects garbage, as every training of transformers does, need not go through them again."""
    gc.collect()
    gc.freeze()


def is_slow(file: pytest.Module | None) -> bool:
    """Whether all tests of a file are marked as slow or nightly."""
    return file is not None and any(mark.name in ("slow", "nightly") for mark in file.own_markers)


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The URL of one temporary Prefect server and database for all test processes (about 15 s); ask for it where a flow runs."""
    import prefect.settings
    from prefect.settings import get_current_settings, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    shared = Path(os.environ["MGAA_TESTS_SHARED"])
    address, users = shared / "prefect.url", (shared / "prefect.users").open("a")
    off = {getattr(prefect.settings, f"PREFECT_SERVER_SERVICES_{name}_ENABLED"): False for name in IDLE}
    with ExitStack() as stack:
        with FileLock(shared / "prefect.lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            if starts := not address.exists():
                stack.enter_context(temporary_settings(off))
                stack.enter_context(prefect_test_harness(server_startup_timeout=180))
                address.write_text(str(get_current_settings().api.url))
            else:
                stack.enter_context(temporary_settings({prefect.settings.PREFECT_API_URL: address.read_text()}))
        yield address.read_text()
        if starts:
            with FileLock(shared / "prefect.lock"):
                address.unlink()
        fcntl.flock(users, fcntl.LOCK_UN)
        if starts:
            fcntl.flock(users, fcntl.LOCK_EX)  # the others have ended


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh project."""
    return copy_project(tmp_path / "projet d'essai")  # spaces and quotes are legal in paths
