"""Folders and files appear whole or not at all, and a disk that refuses says so in one message."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mgaa.checkpoints.output_folder import HOST
from mgaa.errors import ResourceError, UsageError
from tasks.cache.atomic import disk_errors, remove_stale_drafts, replace_folder, temporary_folder, write_file


def test_a_full_disk_is_one_message_with_path_room_and_remedy(tmp_path: Path) -> None:
    def fill() -> None:
        with temporary_folder(tmp_path) as folder, open("/dev/full", "w") as full:
            (folder / "half.bin").write_bytes(bytes(10**6))
            full.write("more than fits")
            full.flush()

    with pytest.raises(ResourceError, match=r"Cannot write /.*: No space left .*1.0 MB written, .* MB free.*Make room"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (SafetensorError("I/O error: No space left on device (os error 28)"), "Make room"),
        (SafetensorError("I/O error: File too large (os error 27)"), "ulimit -f"),
        (Exception("Read-only file system (os error 30)"), "Make the folder writable"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), "Make the folder writable"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Make room"),
    ],
)
def test_what_libraries_say_about_the_disk_is_understood(tmp_path: Path, error: Exception, remedy: str) -> None:
    with pytest.raises(ResourceError, match=remedy), disk_errors(tmp_path):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        UsageError("os error 28"),
        FileNotFoundError(errno.ENOENT, "No such file", "input.txt"),
        PermissionError(errno.EACCES, "Permission denied", "/root/input.txt"),
        SafetensorError("header too large"),
    ],
)
def test_errors_about_anything_else_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_a_failing_replacement_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "results"

    def write(content: str, error: Exception | None = None) -> None:
        with replace_folder(target) as folder:
            (folder / "metrics.json").write_text(content)
            if error:
                raise error

    write("first")
    with pytest.raises(KeyError):
        write("half of the second", KeyError())
    assert (target / "metrics.json").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "a.json", b"first")
    write_file(tmp_path / "a.json", b"second")
    assert (tmp_path / "a.json").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_who_reads_a_file_while_it_is_replaced_reads_the_first_one_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "a.json", b"first")
    with (tmp_path / "a.json").open("rb") as reader:
        write_file(tmp_path / "a.json", b"the second")
        assert reader.read() == b"first"


def test_only_what_dead_processes_of_this_machine_left_is_swept(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = f".tmp-{ended.pid}-{HOST}00000000", f".tmp-{os.getpid()}-{HOST}00000000"
    elsewhere = f".tmp-{ended.pid}-{'0' * 16}"
    for name in (dead, alive, elsewhere, "artifact"):
        (tmp_path / name).mkdir()
    remove_stale_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {alive, elsewhere, "artifact"}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second disk")
def test_the_disk_that_is_named_is_the_one_that_is_full(tmp_path: Path) -> None:
    other = OSError(errno.ENOSPC, "No space left on device", "/dev/shm/cache/file")
    with pytest.raises(ResourceError, match=r"on the disk of /dev/shm\).*set TMPDIR") as caught, disk_errors(tmp_path):
        raise other
    assert "store.path" not in str(caught.value)
    own = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match=r"on the disk of .*store\.path=<folder>"), disk_errors(tmp_path):
        raise own
