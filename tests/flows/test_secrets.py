"""No secret that a run is given is in anything that it writes: a marker is put into every place, and every byte is searched."""

import os
from pathlib import Path

import pytest

from flows.deploy import deploy
from mgaa.errors import UsageError
from tests.support.laboratory import TinyProject

pytestmark = pytest.mark.slow

MARKER = "m4rk3r-of-a-secret"
VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("PREFECT_API_KEY", "HF_TOKEN", "PGPASSWORD", "MGAA_WEBHOOK"),
)
URIS = (
    f"postgresql://team:{MARKER}@127.0.0.1:1/db",
    f"postgresql://127.0.0.1:1/db?user=team&password={MARKER}",
    f"http://team:{MARKER}@127.0.0.1:1",
)


def holding(folder: Path) -> list[Path]:
    """The files below a folder that hold the marker."""
    return [path for path in folder.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]


@pytest.mark.parametrize("uri", URIS)
def test_a_run_with_secrets_in_its_parameters_and_its_environment_writes_none(
    fresh: TinyProject, uri: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"https://{MARKER}" if name == "MGAA_WEBHOOK" else MARKER)
    given = [f"tracking.uri={uri}", "tracking.unreachable=buffer", f"store.remote=memory://key:{MARKER}@bucket/store"]
    outcome = fresh.run(*given, "evaluation.tasks=[]", "evaluation.baselines=[]")
    assert outcome.code == 0, outcome.message
    assert (fresh.root / "results" / "record.json").is_file()
    assert MARKER not in outcome.message + "".join(capfd.readouterr())
    assert holding(fresh.root) == []
    assert holding(Path(os.environ["PREFECT_HOME"])) == []


@pytest.mark.parametrize("uri", URIS)
def test_a_message_about_a_store_that_cannot_be_reached_tells_no_secret(
    fresh: TinyProject, uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = fresh.run(f"tracking.uri={uri}")
    assert outcome.code == 5
    assert "***" in outcome.message
    assert MARKER not in outcome.message + "".join(capfd.readouterr())
    assert holding(fresh.root) == []


def test_a_deployment_is_given_no_secret_to_keep(fresh: TinyProject) -> None:
    with pytest.raises(UsageError, match=r"\*\*\*@127.* holds a secret"):
        deploy(fresh.root / "params.yaml", [f"tracking.uri={URIS[0]}"])
