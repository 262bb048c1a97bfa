"""What one machine computed another one finds, checked; no half result is ever seen; one message when there is no way to the remote store.

A machine is a store of its own in front of the same remote: a folder, and a real server that speaks S3 (rclone).
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mgaa.errors import ResourceError, UsageError
from tasks.cache.artifact import MANIFEST, Artifact, DamagedError, Store
from tasks.cache.remote import Remote
from tasks.cache.step import step
from tests.support.servers import free_port, rclone

bodies: list[str] = []
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@step(kind="numbers")
def count(out: Path, store: Store, *, upto: int) -> None:
    """The numbers below `upto`, in two files."""
    bodies.append("count")
    (out / "numbers.txt").write_text(" ".join(str(number) for number in range(upto)))
    (out / "deep").mkdir()
    (out / "deep" / "last.txt").write_text(str(upto - 1))


@step(kind="sums")
def add(out: Path, store: Store, numbers: Artifact) -> None:
    """Their sum."""
    bodies.append("add")
    (out / "sum.txt").write_text(str(sum(int(n) for n in (store.folder(numbers) / "numbers.txt").read_text().split())))


@pytest.fixture(autouse=True)
def no_bodies() -> None:
    bodies.clear()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """The folder and the port of a server, which is set in the environment."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(name, value)
        configured()
        yield folder, port
    configured()


def configured() -> None:
    """fsspec reads its environment when it is imported; here it changes in between."""
    from fsspec.config import conf, set_conf_env

    conf.clear()
    set_conf_env(conf)


@pytest.fixture(params=["file", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    """A remote store of the test's own."""
    if request.param == "file":
        yield Remote(f"file://{tmp_path / 'remote d_été'}")
        return
    folder, port = request.getfixturevalue("s3")
    with rclone(folder, port):
        yield Remote(f"s3://bucket/{tmp_path.name}")


def test_what_one_machine_computed_another_one_finds(remote: Remote, tmp_path: Path) -> None:
    remote.check()
    one, two = (Store(tmp_path / name, remote=remote) for name in ("one", "two"))
    numbers = count.fn(one, upto=5)
    total = add.fn(one, numbers)
    assert bodies == ["count", "add"]
    assert add.fn(two, numbers) == total  # not even its input is needed
    assert count.fn(two, upto=5) == numbers
    assert bodies == ["count", "add"]
    for artifact in (numbers, total):
        assert two.manifest(artifact) == one.manifest(artifact)
    assert list(tmp_path.rglob("*.tmp-*")) == []


def test_an_input_that_is_not_here_is_fetched(remote: Remote, tmp_path: Path) -> None:
    numbers = count.fn(Store(tmp_path / "one", remote=remote), upto=4)
    total = add.fn(two := Store(tmp_path / "two", remote=remote), numbers)
    assert (two.folder(total) / "sum.txt").read_text() == "6"
    assert bodies == ["count", "add"]


def test_what_was_computed_before_there_was_a_remote_is_pushed_when_it_is_used(tmp_path: Path) -> None:
    remote = Remote(f"file://{tmp_path / 'remote'}")
    numbers = count.fn(Store(tmp_path / "one"), upto=4)
    assert count.fn(Store(tmp_path / "one", remote=remote), upto=4) == numbers
    assert count.fn(Store(tmp_path / "two", remote=remote), upto=4) == numbers
    assert bodies == ["count"]


def test_a_server_that_is_stopped_and_started_again_has_the_store(s3: tuple[Path, int], tmp_path: Path) -> None:
    remote = Remote(f"s3://bucket/{tmp_path.name}")
    with rclone(*s3):
        numbers = count.fn(Store(tmp_path / "one", remote=remote), upto=6)
    with rclone(*s3):
        assert count.fn(Store(tmp_path / "two", remote=remote), upto=6) == numbers
    assert bodies == ["count"]


# Damage


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "altered": flip,
    "truncated": lambda content: content[: len(content) // 2],
    "missing": lambda content: None,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", ["deep/last.txt", MANIFEST, "record"])
def test_damage_in_the_remote_is_named_and_the_step_that_finds_it_repairs_it(
    name: str, damage: Callable[[bytes], bytes | None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Remote(f"file://{tmp_path / 'remote'}")
    numbers = count.fn(Store(tmp_path / "one", remote=remote), upto=12)
    (record,) = (tmp_path / "remote" / "keys").iterdir()
    path = record if name == "record" else tmp_path / "remote" / "numbers" / numbers.digest / name
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    if name != "record":
        with pytest.raises(DamagedError, match=str(path)):
            Store(tmp_path / "reader", remote=remote).folder(numbers)
    two = Store(tmp_path / "two", remote=remote)
    assert count.fn(two, upto=12) == numbers
    assert bodies == ["count", "count"]
    assert count.fn(Store(tmp_path / "three", remote=remote), upto=12) == numbers
    assert bodies == ["count", "count"]
    told = [each.getMessage() for each in caplog.records]
    assert len(told) == (0 if (name, content) == ("record", None) else 1), told


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    from tasks.cache.manifest import digest, format_json

    remote = Remote(f"file://{tmp_path / 'remote'}")
    manifest: dict[str, Any] = {
        "kind": "numbers",
        "digest": "0" * 64,
        "files": {"../../out.txt": {"sha256": "", "size": 1}},
    }
    remote.write(f"numbers/{'0' * 64}/{MANIFEST}", format_json({**manifest, "seal": digest(manifest)}))
    with pytest.raises(DamagedError, match="does not stay inside"):
        Store(tmp_path / "one", remote=remote).folder(Artifact("numbers", "0" * 64))


def killed_at(number: int, store: Store) -> bool:
    """Whether a process that computes the step is killed at the rename of its object `number`, which did not happen yet."""
    process = os.fork()
    if process == 0:
        places: list[str] = []

        def strike(event: str, arguments: Any) -> None:
            if event == "os.rename" and "/remote/" in str(arguments[1]):
                places.append(str(arguments[1]))
                if len(places) == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(strike)
        count.fn(store, upto=7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def test_a_push_that_was_killed_anywhere_is_never_seen_as_a_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    number = 0
    while True:
        number += 1
        root = tmp_path / str(number)
        remote = Remote(f"file://{root / 'remote'}")
        if not killed_at(number, Store(root / "one", remote=remote)):
            break
        bodies.clear()
        numbers = count.fn(Store(root / "two", remote=remote), upto=7)
        assert bodies == ["count"]  # nothing was there
        assert count.fn(Store(root / "one", remote=remote), upto=7) == numbers
        assert count.fn(Store(root / "three", remote=remote), upto=7) == numbers
        assert bodies == ["count"]
    assert number == 5  # two files, the manifest, the record
    assert caplog.records == []  # nor as a damaged one


# What cannot be used


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        (
            "file:///proc/no/such",
            ResourceError,
            r"file:///proc/no/such/mgaa-store .*check the URL.*finished steps are kept",
        ),
        ("s3://no-such-bucket/store", ResourceError, r"s3://no-such-bucket/store/mgaa-store .*bucket does not exist"),
        ("nonsense://x", UsageError, "Protocol not known: nonsense; expected s3://, file://"),
    ],
)
def test_a_remote_that_cannot_be_used_is_one_message(
    url: str, kind: type[Exception], message: str, s3: tuple[Path, int]
) -> None:
    with rclone(*s3), pytest.raises(kind, match=message):
        Remote(url).check()


def test_a_client_that_is_not_installed_is_named_with_its_command() -> None:
    with pytest.raises(UsageError, match=r"a package for gs is missing .*: pip install 'gcsfs'"):
        Remote("gs://bucket/store").check()
