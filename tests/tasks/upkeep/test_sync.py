"""What one member has pushed another one pulls through the remote that DVC has: a folder, S3, SSH; what goes wrong is one message."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgaa.errors import InputError, ResourceError, UsageError
from tasks.cache.artifact import MANIFEST, Artifact, DamagedError, Store
from tasks.cache.manifest import digest, format_json
from tasks.cache.step import step
from tasks.config.parameters import Parameters, load_parameters
from tasks.record.lineage import full_name
from tasks.record.signing import sign, signature
from tasks.upkeep.sync import Transfer, pull, push
from tests.support.finished import ROOT
from tests.support.servers import free_port, rclone, sftp

bodies: list[str] = []


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


@step(kind="run")
def record(out: Path, store: Store, total: Artifact) -> None:
    """What a run leaves for others to find."""
    told = {"flow": "compress", "key": "", "end": "", "artifacts": {"sum": [full_name(total)]}}
    tables = ("parameters", "sources", "keys", "published", "git", "versions", "tags")
    (out / "record.json").write_bytes(format_json(told | {table: {} for table in tables}))


@pytest.fixture(autouse=True)
def no_bodies() -> None:
    bodies.clear()


def member(folder: Path, remote: str) -> Parameters:
    """A checkout with nothing but a remote of DVC."""
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text(f"[core]\n    no_scm = True\n    remote = team\n{remote}")
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return load_parameters(folder / "params.yaml")


def folder_remote(path: Path) -> str:
    return f"['remote \"team\"']\n    url = {path}\n"


def bucket_remote(port: int, path: str) -> str:
    keys = "    access_key_id = key\n    secret_access_key = secret\n"
    return f"['remote \"team\"']\n    url = s3://bucket/{path}\n    endpointurl = http://127.0.0.1:{port}\n{keys}"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an S3 server; its folders are buckets."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    return folder


@pytest.fixture(params=["folder", "s3", "ssh"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, bucket: Path) -> Iterator[str]:
    """The section of DVC's configuration."""
    port = free_port()
    if request.param == "folder":
        yield folder_remote(tmp_path / "remote d'été")
    elif request.param == "s3":
        with rclone(bucket, port):
            yield bucket_remote(port, tmp_path.name)
    else:
        with sftp(tmp_path / "server", port) as key:
            url = f"ssh://user@127.0.0.1:{port}/team"
            yield f"['remote \"team\"']\n    url = {url}\n    keyfile = {key}\n    allow_agent = false\n"


def run(params: Parameters, upto: int = 5) -> Artifact:
    """A run whose record is published."""
    store = Store(params.store_path)
    ended = record.fn(store, add.fn(store, count.fn(store, upto=upto)))
    params.results.mkdir(exist_ok=True)
    (params.results / "record.json").write_bytes((store.folder(ended) / "record.json").read_bytes())
    return ended


def hand_over(one: Parameters, two: Parameters) -> None:
    """What `dvc pull` brings."""
    two.results.mkdir(exist_ok=True)
    (two.results / "record.json").write_bytes((one.results / "record.json").read_bytes())


def test_what_one_member_pushed_another_one_does_not_compute_again(remote: str, tmp_path: Path) -> None:
    one, two = (member(tmp_path / name, remote) for name in ("one", "two"))
    ended = run(one)
    assert push(one) == Transfer(3, 3, 3, 3)
    assert push(one) == Transfer(3, 3, 0, 0)
    hand_over(one, two)
    assert pull(two) == Transfer(3, 3, 3, 3)
    assert pull(two) == Transfer(3, 3, 0, 0)
    bodies.clear()
    assert run(two) == ended
    assert bodies == []
    for kind in ("numbers", "sums", "run"):
        (mine,), (theirs,) = ([*(p.store_path / kind).iterdir()] for p in (one, two))
        assert {path.name: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == {
            path.name: path.read_bytes() for path in theirs.rglob("*") if path.is_file()
        }
    assert list(tmp_path.rglob("*.tmp-*")) == []


def test_the_signature_of_a_run_travels_with_it(tmp_path: Path) -> None:
    one, two = (member(tmp_path / name, folder_remote(tmp_path / "remote")) for name in ("one", "two"))
    ended = run(one)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    push(one)
    signed = sign(Store(one.store_path), ended, tmp_path / "key").read_bytes()
    push(one)  # a signature may come after the push of its run
    hand_over(one, two)
    pull(two)
    assert signature(Store(two.store_path), ended).read_bytes() == signed


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"[" * 100_000,
        b'{"artifacts": ["../../etc/passwd"], "keys": []}',
        b'{"artifacts": ["run"], "keys": []}',
        b'{"artifacts": [], "keys": ["../../../evil"]}',
        b'{"artifacts": [3], "keys": []}',
        b'{"artifacts": [], "keys": [3]}',
        b'{"artifacts": {"run": 1}}',
    ],
)
def test_a_hostile_list_of_a_remote_is_one_message_and_nothing_is_written(content: bytes, tmp_path: Path) -> None:
    one, two = (member(tmp_path / name, folder_remote(tmp_path / "remote")) for name in ("one", "two"))
    run(one)
    push(one)
    hand_over(one, two)
    (listing,) = (tmp_path / "remote" / "store" / "shared").iterdir()
    listing.write_bytes(content)
    with pytest.raises(DamagedError, match="expected the list of a push"):
        pull(two)
    assert not [*two.store_path.rglob("*.json")]


def test_an_artifact_travels_by_its_name_with_what_it_was_made_from(tmp_path: Path) -> None:
    one, two = (member(tmp_path / name, folder_remote(tmp_path / "remote")) for name in ("one", "two"))
    run(one)
    (total,) = (one.store_path / "sums").iterdir()
    assert push(one, [f"sums/{total.name[:6]}"]).artifacts == 2
    assert pull(two, [f"sums/{total.name}"], "team") == Transfer(2, 2, 2, 2)
    bodies.clear()
    store = Store(two.store_path)
    assert add.fn(store, count.fn(store, upto=5)).digest == total.name
    assert bodies == []
    assert not (two.store_path / "run").exists()


def test_a_second_key_of_the_same_content_travels_too(tmp_path: Path) -> None:
    one, two = (member(tmp_path / name, folder_remote(tmp_path / "remote")) for name in ("one", "two"))
    run(one)
    push(one)
    records = [json.loads(path.read_bytes()) for path in (one.store_path / "keys").iterdir()]
    (told,) = (each for each in records if each["kind"] == "numbers")
    store = Store(one.store_path)
    stage = {**told["stage"], "code": "a comment more"}
    store.remember(digest(stage), Artifact(told["kind"], told["digest"]), stage)
    assert push(one) == Transfer(3, 4, 0, 1)
    hand_over(one, two)
    assert pull(two).keys == 4


PUSHING = """
import os, signal, sys
from pathlib import Path
from tasks.config.parameters import load_parameters
from tasks.upkeep.sync import push

places = []
def strike(event, arguments):
    if event == "os.rename" and "/remote/store/" in str(arguments[1]):
        places.append(arguments[1])
        if len(places) == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(strike)
push(load_parameters(Path(sys.argv[2])))
"""


@pytest.mark.parametrize("number", [4, 11])
def test_a_push_that_was_killed_is_never_seen_and_is_finished_by_the_next_one(number: int, tmp_path: Path) -> None:
    one, two = (member(tmp_path / name, folder_remote(tmp_path / "remote")) for name in ("one", "two"))
    run(one)
    hand_over(one, two)
    command = [sys.executable, "-c", PUSHING, str(number), str(one.folder / "params.yaml")]
    killed = subprocess.run(command, cwd=ROOT, check=False)  # of 11 objects: 4 files, 3 manifests, 3 keys, the list
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="its owner runs"):
        pull(two)
    push(one)
    assert pull(two) == Transfer(3, 3, 3, 3)


# What cannot be used


def test_a_full_remote_is_one_message_and_what_is_there_stays_sound(tmp_path: Path) -> None:
    one, two = (member(tmp_path / name, folder_remote(tmp_path / "remote")) for name in ("one", "two"))
    run(one)
    push(one)
    run(one, upto=300_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(ResourceError, match=r"remote team of DVC cannot be used: .*File too large"):
            push(one)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    hand_over(one, two)
    with pytest.raises(InputError, match="its owner runs"):
        pull(two)
    assert [path for path in (tmp_path / "remote").rglob("*") if "tmp" in path.name] == []
    push(one)
    assert pull(two).new_artifacts == 3


@pytest.mark.slow
def test_a_remote_that_refuses_or_is_away_is_one_message(bucket: Path, tmp_path: Path) -> None:
    port = free_port()
    config = bucket_remote(port, tmp_path.name)
    one, two = member(tmp_path / "one", config), member(tmp_path / "two", config.replace("= secret", "= guessed"))
    run(one)
    hand_over(one, two)
    with rclone(bucket, port):
        push(one)
        with pytest.raises(ResourceError, match=r"remote team of DVC cannot be used: s3://bucket.*PermissionError"):
            pull(two)
        with pytest.raises(ResourceError, match="PermissionError"):
            push(two, [str(run(two, upto=7))])
    assert not (two.store_path / "shared").exists()
    with pytest.raises(ResourceError, match="remote team of DVC cannot be used"):
        push(one)


def test_a_package_that_the_remote_needs_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("s3", "ssh"):
        monkeypatch.setitem(sys.modules, f"dvc_{kind}", None)
        one = member(tmp_path / kind, f"['remote \"team\"']\n    url = {kind}://bucket/team\n")
        with pytest.raises(
            UsageError, match=rf"remote team of DVC needs .*'dvc-{kind}'.*: pip install.*'mgaa\[{kind}\]'"
        ):
            pull(one)


@pytest.mark.parametrize("name", ["numbers.txt", MANIFEST])
def test_what_is_damaged_in_the_remote_gets_no_place(name: str, tmp_path: Path) -> None:
    one, two = (member(tmp_path / name, folder_remote(tmp_path / "remote")) for name in ("one", "two"))
    run(one)
    push(one)
    hand_over(one, two)
    (numbers,) = (tmp_path / "remote" / "store" / "numbers").iterdir()
    (numbers / name).write_bytes(b"1" + (numbers / name).read_bytes()[1:])
    with pytest.raises(DamagedError, match=str(numbers / name)):
        pull(two)
    assert not (two.store_path / "numbers" / numbers.name).exists()
    assert push(one).new_artifacts == 1  # which repairs it
    assert pull(two).new_artifacts > 0


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    one = member(tmp_path / "one", folder_remote(tmp_path / "remote"))
    with pytest.raises(InputError, match=r"no .*record\.json .*expected the record of a run"):
        push(one)
    for travel in (push, pull):
        with pytest.raises(InputError, match=r"0 artifacts of .* begin with sums/12"):
            travel(one, ["sums/12"])
    with pytest.raises(UsageError, match="DVC has no remote other"):
        push(one, ["sums/12"], "other")
    with pytest.raises(UsageError, match="dvc remote add --default"):
        push(member(tmp_path / "two", "").model_copy(), ["sums/12"])
