"""Outputs appear whole and replace only what this project wrote, whatever fails and whoever else was there."""

import builtins
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mgaa.checkpoints import output_folder
from mgaa.checkpoints.output_folder import place_files, replace_folder, write_output
from mgaa.checkpoints.ownership import MARK, check_apart, foreign_files
from mgaa.errors import ResourceError, UsageError
from tests.support.processes import ROOT


def content(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def fill(folder: Path, text: str = "first", **options: object) -> None:
    with replace_folder(folder, **options) as draft:  # type: ignore[arg-type]
        (draft / "config.json").write_text(text)
        (draft / "deep").mkdir()
        (draft / "deep" / "weights").write_text(text)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    fill(tmp_path / "out")
    return tmp_path / "out"


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, place: Path, number: int) -> Iterator[list[str]]:
    """Let the operation `number` that changes something below `place` fail, as on a full disk; gives those that were asked for."""
    asked: list[str] = []

    def watch(name: str, owner: object) -> None:
        real = getattr(owner, name)

        def call(*given: object, **named: object) -> object:
            changes = name != "open" or str([*given[1:], *named.values(), "r"][0])[0] in "wxa"
            if changes and str(place) in str(given[0]):
                asked.append(name)
                if len(asked) == number:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(given[0]))
            return real(*given, **named)

        patch.setattr(owner, name, call)

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "mkdir"):
            watch(name, os)
        for name in ("exchange", "flush_file", "flush_folder"):
            watch(name, output_folder)
        watch("open", builtins)
        watch("write_text", Path)
        watch("write_bytes", Path)
        yield asked


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_failure_at_any_operation_leaves_the_old_whole_and_no_draft(
    exchanging: bool, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(ours.parent)
    if not exchanging:
        without_exchange(monkeypatch)
    for number in range(1, 100):
        with failing(monkeypatch, ours.parent, number) as asked, suppress(OSError):
            fill(ours, "second")
        if len(asked) < number:
            break
        if content(ours.parent) != before:  # it came after the exchange, which is then whole
            assert set(content(ours).values()) >= {b"second"}
            assert b"first" not in content(ours).values()
            shutil.rmtree(ours)
            fill(ours)
        assert [path.name for path in ours.parent.iterdir()] == ["out"]
    assert len(asked) == number - 1
    assert b"second" in content(ours).values()


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(output_folder, "exchange", refuse)


def test_files_take_their_places_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(text: str) -> None:
        with place_files(tmp_path) as draft:
            for name in ("a.csv", "b.png", "c.svg"):
                (draft / name).write_text(text)

    place("first")
    (tmp_path / "notes.txt").write_text("a user's")
    before = content(tmp_path)
    for number in range(1, 100):
        with failing(monkeypatch, tmp_path, number) as asked, suppress(OSError):
            place("second")
        if len(asked) < number:
            break
        if b"second" in content(tmp_path).values():  # it came after they were there
            place("first")
            before = content(tmp_path)
        assert content(tmp_path) == before
    assert number > 8
    assert {content(tmp_path)[name] for name in ("a.csv", "b.png", "c.svg")} == {b"second"}
    assert content(tmp_path)["notes.txt"] == b"a user's"


FOREIGN: dict[str, Callable[[Path], object]] = {
    "notes.txt": lambda out: (out / "notes.txt").write_text("mine"),
    "deep/notes.txt": lambda out: (out / "deep" / "notes.txt").write_text("mine"),
    "config.json": lambda out: (out / "config.json").write_text("edited"),
    "link": lambda out: (out / "link").symlink_to(out.parent),
    "dangling": lambda out: (out / "dangling").symlink_to("nowhere"),
    "mine/notes.txt": lambda out: ((out / "mine").mkdir(), (out / "mine" / "notes.txt").write_text("mine")),
    "pipe": lambda out: os.mkfifo(out / "pipe"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_was_put_beside_ours_or_changed_is_never_replaced(name: str, ours: Path) -> None:
    FOREIGN[name](ours)
    before = content(ours) if name != "pipe" else {}
    with pytest.raises(UsageError, match=rf"holds {name}, which mgaa did not write .*give another folder, or move"):
        fill(ours, "second")
    assert name == "pipe" or content(ours) == before
    assert [path.name for path in ours.parent.iterdir()] == ["out"]


def test_what_is_put_there_while_the_new_is_written_is_never_replaced(ours: Path) -> None:
    def busy() -> None:
        with replace_folder(ours) as draft:
            (draft / "config.json").write_text("second")
            (ours / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match=r"holds notes.txt"):
        busy()
    assert content(ours)["notes.txt"] == b"mine"
    assert content(ours)["config.json"] == b"first"


def test_what_is_put_there_in_the_moment_of_the_exchange_comes_back(
    ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = output_folder.swap

    def late(new: Path, place: Path) -> None:
        (place / "notes.txt").write_text("mine")
        monkeypatch.setattr(output_folder, "swap", swap)
        swap(new, place)

    monkeypatch.setattr(output_folder, "swap", late)
    with pytest.raises(UsageError, match=r"holds notes.txt"):
        fill(ours, "second")
    assert (content(ours)["notes.txt"], content(ours)["config.json"]) == (b"mine", b"first")


def test_a_folder_of_somebody_else_is_named_with_a_few_of_its_files(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / name).write_text(name)
    with pytest.raises(UsageError, match=r"holds a, b, c and 2 more, which mgaa did not write"):
        fill(tmp_path)


def test_what_file_managers_leave_is_in_nobodys_way(ours: Path) -> None:
    (ours / ".DS_Store").write_bytes(b"x")
    fill(ours, "second")
    assert sorted(content(ours)) == [MARK, "config.json", "deep/weights"]


def test_a_copied_folder_is_still_ours(ours: Path) -> None:
    copy = Path(shutil.copytree(ours, ours.with_name("copy")))
    fill(copy, "second")
    assert b"second" in content(copy).values()


def test_equal_outputs_are_equal_folders(ours: Path) -> None:
    fill(ours.with_name("other"))
    assert content(ours.with_name("other")) == content(ours)


def test_a_damaged_mark_lets_nothing_be_replaced(ours: Path) -> None:
    for text in ("", "[]", '{"files": 1}', '{"files": {"config.json": 1}}', "\xff", "[" * 100_000):
        (ours / MARK).write_text(text, encoding="latin-1")
        with pytest.raises(UsageError, match=r"holds config.json, deep/weights, which"):
            fill(ours)


def test_a_link_to_a_folder_stays_and_what_it_leads_to_is_replaced(ours: Path) -> None:
    link = ours.with_name("link")
    link.symlink_to("out")
    fill(link, "second")
    assert link.is_symlink()
    assert content(ours)["config.json"] == b"second"


def test_nothing_is_written_through_a_link(ours: Path) -> None:
    """As in a checkout of DVC or a snapshot of the Hub: links into a cache, which no output may change."""
    cache = ours.with_name("cache")
    (ours / "config.json").rename(cache)
    cache.chmod(0o444)
    (ours / "config.json").symlink_to(cache)
    os.link(ours / "deep" / "weights", ours.with_name("other"))
    fill(ours, "second")
    assert (cache.read_text(), ours.with_name("other").read_text()) == ("first", "first")
    assert not (ours / "config.json").is_symlink()
    write_output(ours.parent / "m.json", b"1")
    (ours.parent / "m.json").rename(ours.with_name("blob"))
    (ours.parent / "m.json").symlink_to("blob")
    write_output(ours.parent / "m.json", b"2")
    assert (ours.parent / "blob").read_bytes() == b"1"
    assert (ours.parent / "m.json").read_bytes() == b"2"


def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"holds m.json, which mgaa did not write"):
        write_output(path, b"1")
    path.unlink()
    write_output(path, b"1")
    write_output(path, b"2")
    path.write_text("edited")
    with pytest.raises(UsageError, match=r"holds m.json"):
        write_output(path, b"3")
    assert path.read_text() == "edited"


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_a_file_in_the_way_is_one_message(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot be written to .*file is not a folder: give another folder"):
        fill(tmp_path / place)


def test_a_folder_that_may_not_be_written_is_not_replaced(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access  # which allows everything to root
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != ours and access(path, mode))
    with pytest.raises(ResourceError, match="out is not writable: give another folder"):
        fill(ours, "second")


def test_where_no_draft_can_lie_beside_a_folder_an_empty_one_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point, or the working folder: it is filled, and is not replaced a second time."""
    monkeypatch.chdir(tmp_path)
    fill(Path())
    assert sorted(content(tmp_path)) == [MARK, "config.json", "deep/weights"]
    before = content(tmp_path)
    with pytest.raises(
        ResourceError, match=r"cannot be exchanged as a whole, because it is the working folder: give a"
    ):
        fill(Path(), "second")
    assert content(tmp_path) == before


def test_a_failure_while_an_empty_folder_is_filled_leaves_it_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(1, 100):
        with failing(monkeypatch, tmp_path, number) as asked, suppress(OSError):
            fill(Path())
        if len(asked) < number:
            break
        if content(tmp_path):  # whole, and only its entries were not forced to the disk
            assert len(content(tmp_path)) == 3
            shutil.rmtree(tmp_path / "deep")
            for path in tmp_path.iterdir():
                path.unlink()
        assert not [*tmp_path.iterdir()]
    assert sorted(content(tmp_path)) == [MARK, "config.json", "deep/weights"]


@pytest.mark.parametrize(
    ("out", "how"),
    [
        ("source", "is"),
        ("source/", "is"),
        ("other/../source", "is"),
        ("link", "is"),
        ("source/inside", "lies in"),
        ("link/inside", "lies in"),
        (".", "holds"),
    ],
)
def test_an_output_is_apart_from_what_is_read(out: str, how: str, tmp_path: Path) -> None:
    for name in ("source", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("source")
    with pytest.raises(UsageError, match=f" {how} the source, .*: give another folder"):
        check_apart(tmp_path / out, tmp_path / "source", "the source")
    with pytest.raises(UsageError, match=f" {how} what is read, .*: give another folder"):
        fill(tmp_path / out, reads=[tmp_path / "source"])
    assert content(tmp_path) == {"link": "source"}
    check_apart(tmp_path / "source2", tmp_path / "source", "the source")


KILLED = """
import os, signal, sys
from pathlib import Path
from mgaa.checkpoints import output_folder as output
if sys.argv[3] == "renames":
    import errno
    def exchange(one, other): raise OSError(errno.EINVAL, "")
    output.exchange = exchange
strike, seen = int(sys.argv[2]), []
def count(event, given):
    if event in ("os.rename", "os.mkdir", "open", "ctypes.dlsym") and (event != "open" or given[1] == "w"):
        seen.append(event)
        if len(seen) == strike:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
with output.replace_folder(Path(sys.argv[1])) as draft:
    (draft / "config.json").write_text("second")
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_a_kill_at_any_operation_leaves_the_old_or_the_new_whole(way: str, ours: Path) -> None:
    for strike in range(1, 20):
        done = subprocess.run([sys.executable, "-c", KILLED, str(ours), str(strike), way], cwd=ROOT, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        if way == "exchange" or ours.exists():
            assert foreign_files(ours) == []
            assert set(content(ours).values()) & {b"first", b"second"}
        fill(ours)
        assert [path.name for path in ours.parent.iterdir()] == ["out"]
    assert strike > 3
