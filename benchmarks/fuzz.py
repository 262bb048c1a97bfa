"""Robustness against hostile files: files from users and remotes are damaged at random, and opened as our commands open them.

    python benchmarks/fuzz.py                                  # every kind of file, a minute each
    python benchmarks/fuzz.py config lock --minutes 10 --seed 3

A damaged file must be opened, or refused with an error of ours; anything else is a finding, and so is a file that appears outside its
folder. The draws depend on the seed and the number of the case alone; a finding names both. The exit code is 1 if there is one.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mgaa.errors import MgaaError

EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**40, -(2**63), 10**30, 0.5, 1e308, "", "a", "../../x", "/etc/passwd", "\0"),
    *([], {}, [[]], [None], {"a": None}, "owner/name", "9" * 5000, "é", "nan", "\ud800"),
)
"""Replacements of a value."""


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Flip, cut, double or insert bytes."""
    if not content:
        return bytes([draw.randrange(256)])
    place, length = draw.randrange(len(content)), draw.choice((1, 2, 8, 64))
    kind = draw.randrange(4)
    if kind == 0:
        return content[:place] + bytes(draw.randrange(256) for _ in range(length)) + content[place + length :]
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + content[place : place + length] * 2 + content[place + length :]
    return content[:place] + draw.choice((b"\0", b"\xff\xfe", b'"', b"{", b"[" * 5000, b"\n")) + content[place:]


def altered(value: Any, draw: random.Random) -> Any:
    """Remove, double or replace by an extreme one place in a nested value."""
    if draw.random() < 0.15 or not isinstance(value, dict | list) or not value:
        return draw.choice(EXTREMES)
    if isinstance(value, dict):
        key, kind = draw.choice([*value]), draw.randrange(8)
        if kind == 0:
            return {each: inner for each, inner in value.items() if each != key}
        if kind == 1:
            return value | {f"{key}x": value[key]}
        return value | {key: altered(value[key], draw)}
    place = draw.randrange(len(value))
    return [*value[:place], altered(value[place], draw), *value[place + 1 :]]


def as_json(content: bytes, draw: random.Random) -> bytes:
    """Damage a JSON file in its bytes or in its content."""
    if draw.random() < 0.4:
        return damaged(content, draw)
    return json.dumps(altered(json.loads(content), draw)).encode()


def as_lines(content: bytes, draw: random.Random) -> bytes:
    """Damage a file of JSON lines in its bytes or in one of its rows."""
    lines = content.split(b"\n")[:-1]
    place = draw.randrange(len(lines))
    lines[place] = as_json(lines[place], draw)
    return b"\n".join([*lines, b""])


def as_yaml(content: bytes, draw: random.Random) -> bytes:
    """Damage a YAML file in its bytes or in its content."""
    import yaml

    if draw.random() < 0.4:
        return damaged(content, draw)
    changed = altered(yaml.safe_load(content), draw)
    return yaml.safe_dump(changed, allow_unicode=False).encode("utf-8", "surrogatepass")


def as_header(content: bytes, draw: random.Random) -> bytes:
    """Damage the header of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = as_json(content[8 : 8 + size], draw)
    length = len(header) if draw.random() < 0.8 else draw.choice((0, 2**40, 2**63, len(header) + 1))
    return length.to_bytes(8, "little") + header + content[8 + size :]


Kind = tuple[Path, Callable[[bytes, random.Random], bytes], Callable[[Path], object]]


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind of file: its path, how it is damaged, and how it is opened, given the folder of the project, with `model` and `run` below
    it.
    """
    from mgaa.checkpoints.load import load
    from mgaa.checkpoints.meta_model import load_meta_model
    from mgaa.checkpoints.ownership import check_folder
    from tasks.audit.dvc_lock import read_stages
    from tasks.audit.verify_store import verify_store
    from tasks.cache.artifact import Store
    from tasks.config.parameters import load_parameters as parameters
    from tasks.data.documents import read_documents
    from tasks.record.run_record import parse_record

    model = folder / "model"

    def opened(path: Path) -> None:
        load_meta_model(path.parent)
        load(path.parent, device="cpu")

    return {
        "config": (model / "config.json", as_json, opened),
        "header": (model / "model.safetensors", as_header, lambda path: load(path.parent, device="cpu")),
        "streamed": (model / "model.safetensors", as_header, lambda path: load(path.parent, device="cpu", stream=True)),
        "index": (
            folder / "sharded" / "model.safetensors.index.json",
            as_json,
            lambda path: load(path.parent, device="cpu"),
        ),
        "rows": (folder / "texts.jsonl", as_lines, read_documents),
        "params": (folder / "params.yaml", as_yaml, parameters),
        "manifest": (
            next(folder.glob("store/ranks/*/manifest.json")),
            as_json,
            lambda path: verify_store(Store(path.parents[2])),
        ),
        "record": (folder / "results" / "record.json", as_json, lambda path: parse_record(path.read_bytes(), path)),
        "lock": (folder / "dvc.lock", as_yaml, lambda path: read_stages(path.read_bytes(), "dvc.lock")),
        "mark": (folder / "marked" / ".mgaa.json", as_json, lambda path: check_folder(path.parent)),
    }


@contextlib.contextmanager
def project() -> Iterator[Path]:
    """A finished run of a tiny model, in a folder of its own."""
    import os

    with tempfile.TemporaryDirectory() as home:
        os.environ["PREFECT_HOME"] = home
        from tests.support.finished import ROOT, finished_run

        folder = Path(home) / "project"
        shutil.copytree(finished_run().parameters.folder, folder)
        shutil.copy(ROOT / "dvc.lock", folder)
        shutil.copy(folder / "calibration.jsonl", folder / "texts.jsonl")
        (folder / "marked").mkdir()
        shutil.copy(ROOT / "models" / "demo" / ".mgaa.json", folder / "marked")
        shard(folder / "model", folder / "sharded")
        yield folder


def shard(model: Path, target: Path) -> None:
    """Write the model in several files."""
    import mgaa

    loaded, tokenizer = mgaa.load(model, device="cpu")
    mgaa.save(loaded, tokenizer, target, max_shard_size="20KB")


def listing(folder: Path) -> set[Path]:
    """All paths below a folder."""
    return {path.relative_to(folder) for path in folder.rglob("*")}


def fuzz(name: str, folder: Path, kind: Kind, *, seconds: float, seed: int) -> tuple[int, int, list[str]]:
    """Number of cases that were opened and refused in the time, and the findings."""
    path, damage, opened = kind
    whole, before, end = path.read_bytes(), listing(folder), time.monotonic() + seconds
    counts, findings, number = [0, 0], list[str](), 0
    while time.monotonic() < end:
        draw = random.Random(f"{seed} {name} {number}")
        try:
            path.write_bytes(damage(whole, draw))
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                opened(path)
            counts[0] += 1
        except MgaaError:
            counts[1] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            findings.append(
                f"{name} {seed} {number}: {type(error).__name__}: {str(error)[:120]!r} in {last.filename}:{last.lineno}"
            )
        number += 1
    path.write_bytes(whole)
    if more := listing(folder) - before:
        findings.append(f"{name} {seed}: {sorted(map(str, more))[:3]} appeared")
    return counts[0], counts[1], findings


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = list[str]()
    with project() as folder:
        every = kinds(folder)
        for name in given.kinds or every:
            opened, refused, findings = fuzz(name, folder, every[name], seconds=60 * given.minutes, seed=given.seed)
            print(f"{name:<10} {opened:>7} opened  {refused:>7} refused  {len(findings):>4} findings", flush=True)
            for each in dict.fromkeys(one.partition(": ")[2] for one in findings):
                print(f"           {next(one for one in findings if one.endswith(each))}", flush=True)
            found += findings
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
