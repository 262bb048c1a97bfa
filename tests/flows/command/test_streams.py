"""A command does its work whatever its streams are, and says in its exit code what became of what it had to show."""

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

SAYS = "import sys; from flows.command.cli import run_command; sys.exit(run_command(lambda: print({text})))"
WORDS = SAYS.format(text="'0.5 \\u00b1 0.1 \\u2500 \\u00e9'")
MUCH = SAYS.format(text="'word ' * 100_000")


def shell(line: str, *, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which `$python` and `$code` are there; its exit code is that of the first command of a pipe."""
    own = {**os.environ, "python": sys.executable, "code": code, **environment}
    command = ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=own, check=False)


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "0.5 ? 0.1 ? ?\n"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "0.5 ? 0.1 ? ?\n"),
        ({"PYTHONIOENCODING": "utf-8"}, "0.5 ± 0.1 ─ é\n"),
    ],
)
def test_what_a_stream_cannot_encode_is_shown_as_a_question_mark(environment: dict[str, str], shown: str) -> None:
    done = shell('$python -c "$code"', code=WORDS, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(shown)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_a_command_quietly(unbuffered: str) -> None:
    done = shell('$python -c "$code" | head -c 4', code=MUCH, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stdout, done.stderr) == (141, "word", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("text", [WORDS, MUCH])
def test_a_full_device_is_a_resource_and_one_message(text: str, unbuffered: str) -> None:
    done = shell('$python -c "$code" > /dev/full', code=text, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 5
    assert done.stderr.startswith("error: the output cannot be written (No space left on device)")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("line", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(line: str) -> None:
    done = shell(f'$python -c "$code" {line}', code=WORDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if ">&- " in f"{line} " and not line.startswith("2") else "0.5 ± 0.1 ─ é\n")


def test_a_file_that_is_opened_never_gets_the_number_of_a_closed_stream() -> None:
    code = "import flows, sys; sys.exit(open('params.yaml').fileno() < 3)"
    assert shell('$python -c "$code" <&- >&- 2>&-', code=code).returncode == 0


@pytest.mark.parametrize("line", ["2>/dev/full", "2>&-"])
def test_a_message_that_cannot_be_written_leaves_the_exit_code(line: str) -> None:
    code = """
import sys
from flows.command.cli import run_command
from mgaa.errors import InputError
def act():
    raise InputError("The file is empty.")
sys.exit(run_command(act))
"""
    assert shell(f'$python -c "$code" {line}', code=code).returncode == 3


def test_the_pipe_of_something_else_that_breaks_is_a_mistake_of_ours() -> None:
    code = """
import sys
from flows.command.cli import run_command
def act():
    raise BrokenPipeError(32, "Broken pipe")
sys.exit(run_command(act))
"""
    done = shell('$python -c "$code"', code=code)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("command", ["flows.compress --help", "flows.store --help", "flows.deploy --help"])
def test_the_help_of_every_kind_of_command_can_be_cut_off(command: str) -> None:
    done = shell(f"$python -m {command} | true")
    assert done.returncode in (0, 141)
    assert done.stderr == ""
    full = shell(f"$python -m {command} > /dev/full")
    assert (full.returncode, len(full.stderr.splitlines())) == (5, 1)
