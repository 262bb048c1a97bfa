"""A scheduled run waits for its device, tries again after an outage alone, is reported, and does nothing where nothing has changed."""

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.states import Failed

from flows import deploy
from flows.schedule.device_lock import hold_devices, lock_folder
from flows.schedule.runs import is_transient, scheduled
from flows.schedule.webhook import post_news
from mgaa.errors import InputError, LockedError, MgaaError, NumericalError, ResourceError, UsageError
from tasks.config.parameters import Parameters, load_parameters
from tasks.record.unchanged import find_unchanged_run
from tests.support.laboratory import Outcome, TinyProject
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices of this machine may be in use by others than the tests."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What a webhook was told."""
    told: list[dict[str, Any]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        monkeypatch.setenv("MGAA_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hooks/secret")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield told
        server.shutdown()
        thread.join()


def run(lab: TinyProject, *overrides: str, command: Any = "compress") -> Any:
    """A scheduled run in this process; the state in which it ended."""
    return scheduled(command, list(overrides), str(lab.root / "params.yaml"), return_state=True)


# Nothing has changed


@pytest.fixture(scope="module")
def published(first: tuple[TinyProject, Outcome], tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A laboratory with the results of a run; whoever alters them puts them back."""
    lab = first[0].copy(tmp_path_factory.mktemp("schedule") / "published")
    assert run(lab).name == "Completed"
    return lab


def parameters(lab: TinyProject, *overrides: str) -> Parameters:
    return load_parameters(lab.root / "params.yaml", overrides)


def test_what_would_change_nothing_is_skipped_and_says_so(published: TinyProject) -> None:
    before = published.written()
    state = run(published, "schedule.retries=0")
    assert (state.name, published.executed(before)) == ("Skipped", {})
    record = json.loads((published.root / "results" / "record.json").read_bytes())
    assert f"Nothing has changed since the run of {record['end']}" in state.message


@pytest.mark.parametrize("other", ["ratios.compression=0.3", "output.results=elsewhere", "evaluation.limit=5"])
def test_a_run_of_other_parameters_is_no_repetition(other: str, published: TinyProject) -> None:
    assert find_unchanged_run(parameters(published, "runner.workers=1", "schedule.notify=all")) is not None
    assert find_unchanged_run(parameters(published, other)) is None


PUBLISHED = ("results/record.json", "results/metrics.json", "results/plots/sizes.csv", "models/compressed/config.json")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_run_whose_results_are_not_in_place_is_repeated(name: str, published: TinyProject) -> None:
    path = published.root / name
    sound = path.read_bytes()
    for damage in (lambda: path.write_bytes(sound.replace(b"0", b"1")), path.unlink):
        damage()
        assert find_unchanged_run(parameters(published)) is None
    path.write_bytes(sound)
    assert find_unchanged_run(parameters(published)) is not None


def test_weights_are_taken_at_the_word_of_their_manifest_and_their_size(
    published: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.record.unchanged.SMALL", 1000)
    weights = published.root / "models" / "compressed" / "model.safetensors"
    assert find_unchanged_run(parameters(published)) is not None
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1])
    assert find_unchanged_run(parameters(published)) is None
    weights.write_bytes(sound)


def test_a_damaged_record_and_results_that_are_gone_are_made_again(published: TinyProject) -> None:
    before = published.written()
    for record in published.artifacts("run"):
        (record / "record.json").write_bytes(b"{}")
    shutil.rmtree(published.root / "results")
    assert run(published).name == "Completed"
    assert run(published).name == "Skipped"
    assert published.executed(before) == {}


def test_a_run_by_hand_is_not_skipped(published: TinyProject) -> None:
    record = (published.root / "results" / "record.json").read_bytes()
    assert published.run().code == 0
    assert (published.root / "results" / "record.json").read_bytes() != record


# One at a time


def test_two_runs_never_hold_the_same_device() -> None:
    holders: Counter[str] = Counter()
    most, waited = list[int](), list[str]()

    def hold(devices: list[str]) -> None:
        with hold_devices(devices, "a run", 60, waited.append):
            holders.update(devices)
            most.append(max(holders.values()))
            holders.subtract(devices)

    threads = [threading.Thread(target=hold, args=(devices,)) for devices in [["a", "b"], ["b"], ["a"]] * 10]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 30


def test_a_run_that_waits_longer_than_allowed_ends_with_who_holds_the_device() -> None:
    waiting: list[str] = []
    with (
        hold_devices(["cpu"], "the run golden-owl", 1, waiting.append),
        pytest.raises(LockedError, match=r"cpu is in use by the run golden-owl, expected it to be free within 0.1 s"),
        hold_devices(["cpu"], "another", 0.1, waiting.append),
    ):
        pass
    assert waiting == ["cpu is in use by the run golden-owl; waiting for it"]


def test_a_device_is_free_once_the_process_that_held_it_is_killed() -> None:
    script = (
        "import os, signal\nfrom flows.schedule.device_lock import hold_devices\n"
        "with hold_devices(['cpu'], 'the dead', 1, print): os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment).returncode == -signal.SIGKILL
    assert (lock_folder() / "cpu").read_text() == "the dead"
    with hold_devices(["cpu"], "the next", 0.1, pytest.fail):
        pass


@pytest.mark.parametrize("planted", ["a link", "a file", "open to all"])
def test_locks_lie_where_no_other_user_can_plant_links(
    tmp_path: Path, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (place := lock_folder()).rmdir()
    victim = tmp_path / "victim"
    victim.mkdir()
    if planted == "a link":
        place.symlink_to(victim)
    elif planted == "open to all":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.write_text("")
    with (
        pytest.raises(ResourceError, match="expected a folder of this user alone"),
        hold_devices(["cpu"], "a", 0.1, print),
    ):
        pass
    assert not [*victim.iterdir()]


# Again after an outage alone


CAUSES = {
    "a socket": (ResourceError, ConnectionResetError(), True),
    "a disk": (ResourceError, OSError(28, "No space left on device"), True),
    "a database": (ResourceError, sqlite3.OperationalError(), True),
    "memory": (ResourceError, MemoryError(), False),
    "a card's memory": (ResourceError, RuntimeError("CUDA out of memory"), False),
    "no room from the start": (ResourceError, None, False),
    "a parameter": (UsageError, OSError(), False),
    "a file": (InputError, OSError(), False),
    "a number": (NumericalError, None, False),
}


@pytest.mark.parametrize(("kind", "cause", "again"), CAUSES.values(), ids=CAUSES)
def test_only_what_a_network_a_disk_or_a_store_refused_is_tried_again(
    kind: type[MgaaError], cause: Exception | None, again: bool
) -> None:
    error = kind("it failed")
    error.__cause__ = cause
    assert is_transient(None, None, Failed(data=error)) is again


@pytest.mark.parametrize(
    ("mistake", "tries"), [("store.remote=file:///dev/null/store", 3), ("backbone.source=nowhere", 1)]
)
def test_an_outage_is_waited_for_and_a_mistake_is_not(
    mistake: str, tries: int, published: TinyProject, caplog: pytest.LogCaptureFixture, webhook: list[dict[str, Any]]
) -> None:
    state = run(published, mistake, "schedule.retries=2", "schedule.delay=0")
    assert state.is_failed()
    assert caplog.text.count("Retry ") == tries - 1
    assert [(news["state"], news["flow"]) for news in webhook] == [("Failed", "scheduled")]
    assert webhook[0]["message"] in webhook[0]["text"]


def test_a_run_that_takes_too_long_is_ended(fresh: TinyProject) -> None:
    state = run(fresh, "schedule.timeout=0.5")
    assert state.is_failed()
    assert "took longer than schedule.timeout, 0.5 s" in state.message


# News


def test_a_run_that_ends_well_is_told_where_it_is_wanted(published: TinyProject, webhook: list[dict[str, Any]]) -> None:
    run(published)
    assert webhook == []
    run(published, "schedule.notify=all")
    assert [news["state"] for news in webhook] == ["Skipped"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/hooks/secret", "hooks/secret", "http://secret@[/", "ftp://secret@x"]
)
def test_a_webhook_that_is_gone_is_a_warning_without_its_url(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MGAA_WEBHOOK", url)
    post_news({"state": "Failed"}, logging.getLogger("news"))
    assert caplog.text.count("could not be reached") == 1
    assert "secret" not in caplog.text


# Mistakes of the one who schedules

MISTAKES = {
    "schedule.cron.compress=often": "expected minute, hour, day, month and weekday such as '0 2 * * *', got 'often'",
    "schedule.cron.compress=0 2 31 2 *": "expected minute, hour, day, month and weekday",
    "schedule.cron.sweep=0 0 2 * * *": "expected minute, hour, day, month and weekday",
    "schedule.timezone=Mars/Olympus": "expected an IANA name such as Etc/UTC or Europe/Berlin, got 'Mars/Olympus'",
    "schedule.timezone=../../etc/passwd": "expected an IANA name",
    "schedule.active=[compress,search]": "schedule.active.1 is 'search': expected 'compress', 'sweep' or 'evaluate'",
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items())
def test_a_mistake_in_the_schedule_is_said_before_anything_is_deployed(
    mistake: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy.main([f"--params={ROOT / 'params.yaml'}", mistake]) == 2
    assert message in capsys.readouterr().err


def test_there_is_no_schedule_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    for url, code, message in (
        (None, 2, "No server of Prefect is set"),
        ("http://127.0.0.1:9/api", 5, "PREFECT_API_URL is http://127.0.0.1:9/api, where no server of Prefect answers"),
    ):
        with temporary_settings({PREFECT_API_URL: url}):
            assert deploy.main([]) == code
        said = capsys.readouterr().err
        assert message in said
        assert "prefect server start" in said
        assert said.count("\n") == 1
