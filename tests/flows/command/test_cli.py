"""A command returns an exit code that says who must act, and one message that says how."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.command.cli import main
from mgaa.errors import InputError, LockedError, MgaaError, NumericalError, ResourceError, UsageError
from tasks.config.parameters import Parameters
from tests.support.processes import ROOT, Project

PARAMS = f"--params={ROOT / 'params.yaml'}"


def raising(error: BaseException) -> Callable[[Parameters], None]:
    def compress(parameters: Parameters) -> None:
        """Compress a model."""
        raise error

    return compress


def test_a_flow_gets_the_checked_parameters() -> None:
    given: list[Parameters] = []
    assert main(given.append, [PARAMS, "ratios.compression=0.3"]) == 0
    assert given[0].ratios.compression == 0.3


def test_the_parameters_are_those_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Parameters] = []
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    assert main(given.append, []) == 0
    assert given[0].store_path == tmp_path / "store"


@pytest.mark.parametrize(
    ("kind", "code"),
    [(UsageError, 2), (InputError, 3), (NumericalError, 4), (ResourceError, 5), (LockedError, 6), (MgaaError, 1)],
)
def test_every_error_is_one_message_and_its_exit_code(
    kind: type[MgaaError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(raising(kind("The value is 3: expected 4.")), [PARAMS]) == code
    assert capsys.readouterr().err == "error: The value is 3: expected 4.\n"


@pytest.mark.parametrize("argument", ["ratios.compression=2", "--verbose", "--params=nowhere.yaml", "compression"])
def test_a_wrong_argument_is_usage(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(raising(AssertionError()), [PARAMS, argument]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_traceback_is_shown_when_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(raising(InputError("The file is empty.")), [PARAMS, "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        main(raising(KeyError("x")), [PARAMS])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_that_nothing_is_lost(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    assert main(lambda parameters: signal.raise_signal(number), [PARAMS]) == 130
    assert capsys.readouterr().err == "interrupted: completed steps are cached; run the same command to resume\n"
    assert signal.getsignal(number) is before


def test_the_help_needs_no_parameters(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(raising(AssertionError()), ["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("python -m flows.compress [section.key=value ...]\nCompress a model.\n")
    assert "ratios.compression" in shown


@pytest.mark.slow
def test_a_command_reuses_in_a_new_process_with_a_new_prefect_and_reports_one_error_once(
    project: Project, prefect_server: str
) -> None:
    first = project.run("-m", "flows.toy", PREFECT_API_URL=prefect_server)
    assert first.returncode == 0, first.stderr
    assert project.executed() == ["count", "combine"]
    failed = project.run("-m", "flows.toy", "tracking.experiment=fail", PREFECT_HOME=str(project.root / "new home"))
    assert project.executed() == []
    assert failed.returncode == 4
    assert failed.stderr == "error: Weight 3 is NaN: expected finite weights; set backbone.dtype to float32.\n"
    assert failed.stdout == first.stdout.splitlines(keepends=True)[0]


def test_a_terminated_command_keeps_what_was_finished(project: Project, prefect_server: str) -> None:
    process = project.start("-m", "flows.toy", "tracking.experiment=long", WAIT="1", PREFECT_API_URL=prefect_server)
    assert process.stdout is not None
    shown = [process.stdout.readline() for _ in range(2)]
    assert re.fullmatch(r"[0-9a-f]{64}\nhalf\n", "".join(shown))
    process.terminate()
    assert (
        process.communicate(timeout=120)[1]
        == "interrupted: completed steps are cached; run the same command to resume\n"
    )
    assert process.returncode == 130
    assert not [path for path in project.contents() if "/long/" in path]
    assert len([path for path in project.contents() if "/sums/" in path]) == 1
