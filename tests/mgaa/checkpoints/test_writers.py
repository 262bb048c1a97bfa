"""Every writer of the library into a folder that a user names: what is not ours stays, and a failure or a kill leaves the old whole."""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mgaa.allocation import file
from mgaa.allocation.latency import Curve, Profile, Timing
from mgaa.checkpoints.densify import densify_folder
from mgaa.checkpoints.ownership import MARK
from mgaa.checkpoints.save import load, save, save_blockwise
from mgaa.errors import MgaaError, ResourceError, UsageError
from tests.mgaa.checkpoints.test_output_folder import content, failing

Build = Callable[..., PreTrainedModel]
Writer = Callable[[Path], object]


@pytest.fixture
def source(tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model of somebody else."""
    tiny("llama").save_pretrained(tmp_path / "source")
    words.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def profile() -> Profile:
    timing = Timing(1e-3, 1e-6)
    curves = {(4, 4, False): {1: Curve(timing, {1: timing})}}
    return Profile("cpu", "a device", "float32", "2", 1, (1,), 1, 8, False, curves)


@pytest.fixture
def writers(source: Path) -> dict[str, Writer]:
    model, tokenizer = load(source, device="cpu")
    streamed, _ = load(source, device="cpu", stream=True)

    def blockwise(out: Path) -> None:
        save_blockwise(streamed, tokenizer, out / "model", change=lambda block: None)

    return {
        "save": lambda out: save(model, tokenizer, out / "model"),
        "shards": lambda out: save(model, tokenizer, out / "model", max_shard_size="12KB"),
        "streamed": blockwise,
        "densify_folder": lambda out: densify_folder(source, out / "model"),
        "profile": lambda out: profile().save(out / "latency.json"),
        "allocation": lambda out: file.save_allocation({"budget": 1}, out / "allocation.json"),
    }


WRITERS = ("save", "shards", "streamed", "densify_folder", "profile", "allocation")


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_repeats_over_its_own_and_refuses_what_is_not(
    name: str, writers: dict[str, Writer], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    writers[name](out)
    first = content(out)
    writers[name](out)
    assert content(out) == first
    assert [each for each in out.iterdir() if each.name.startswith(".") and each.name != MARK] == []
    changed = next(path for path in sorted(out.rglob("*.json")) if path.name != MARK)
    changed.write_text("of a user")
    before = content(out)
    with pytest.raises(UsageError, match=rf"holds {changed.name}, which mgaa did not write or which has changed since"):
        writers[name](out)
    assert content(out) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_fails_at_any_operation_without_a_trace(
    name: str, writers: dict[str, Writer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    writers[name](out)
    before = content(out)
    for number in range(1, 200):
        with failing(monkeypatch, out, number) as asked, suppress(MgaaError):
            writers[name](out)
        if len(asked) < number:
            break
        for draft in out.glob(".model.mgaa-*"):  # of `densify_folder`, which the next call takes up
            assert name == "densify_folder"
            shutil.rmtree(draft)
        assert content(out) == before
    assert number > 5


@pytest.mark.parametrize("name", WRITERS[:4])
def test_a_folder_of_a_user_is_refused_before_any_work(name: str, writers: dict[str, Writer], tmp_path: Path) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds adapter_config.json, which mgaa did not write"):
        writers[name](tmp_path / "out")
    assert [*content(tmp_path / "out")] == ["model/adapter_config.json"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", ["source", "source/", "./source", "link", "source/inside", "."])
def test_a_model_is_not_saved_over_the_folder_it_was_loaded_from(
    place: str, stream: bool, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in memory may be saved inside of it, and over a folder of ours."""
    monkeypatch.chdir(source.parent)
    Path("link").symlink_to("source")
    before = content(source)
    model, tokenizer = load("source", device="cpu", stream=stream)
    if place == "source/inside" and not stream:
        save(model, tokenizer, place)
        return
    with pytest.raises(UsageError, match="give another folder"):
        save(model, tokenizer, place)
    assert content(source) == before


def test_a_streamed_model_is_not_saved_over_our_own_folder_that_it_reads(source: Path, tmp_path: Path) -> None:
    save(*load(source, device="cpu"), tmp_path / "ours")
    before = content(tmp_path / "ours")
    model, tokenizer = load(tmp_path / "ours", device="cpu", stream=True)
    with pytest.raises(UsageError, match=r"ours is what is read, .*: give another folder"):
        save(model, tokenizer, tmp_path / "ours")
    with pytest.raises(UsageError, match=r"ours is what is read, .*: give another folder"):
        save_blockwise(model, tokenizer, tmp_path / "ours", change=lambda block: None)
    assert content(tmp_path / "ours") == before


def test_a_model_in_memory_is_saved_over_our_own_folder_that_it_came_from(source: Path, tmp_path: Path) -> None:
    save(*load(source, device="cpu"), tmp_path / "ours")
    model, tokenizer = load(tmp_path / "ours", device="cpu")
    with torch.no_grad():
        model.model.norm.weight += 1
    ids = torch.arange(8)[None]
    for _ in range(2):
        save(model, tokenizer, tmp_path / "ours")
        assert torch.equal(load(tmp_path / "ours", device="cpu")[0](ids).logits, model(ids).logits)


@pytest.mark.parametrize("target", ["source", "link", "source/inside", "."])
def test_a_folder_is_not_densified_into_itself(target: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    Path("link").symlink_to("source")
    before = content(source)
    with pytest.raises(UsageError, match=r"the source, .*: give another folder"):
        densify_folder("source", target)
    assert content(source) == before


def test_what_was_densified_in_part_is_not_taken_up_for_another_model(
    tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        model = tiny("llama")
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight += seed
        save(model, words, tmp_path / name)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr("mgaa.checkpoints.shards.join_parts", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt()))
        densify_folder(tmp_path / "one", tmp_path / "plain")
    densify_folder(tmp_path / "other", tmp_path / "plain")
    assert not [*tmp_path.glob(".plain*")]
    expected, found = (load(tmp_path / name, device="cpu")[0].state_dict() for name in ("other", "plain"))
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def test_a_full_disk_leaves_the_old(source: Path, tmp_path: Path) -> None:
    model, tokenizer = load(source, device="cpu")
    save(model, tokenizer, tmp_path / "out" / "model")
    before = content(tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ResourceError, match=r"cannot be written to \S*/out/model \(.*File too large"):
            save(model, tokenizer, tmp_path / "out" / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(tmp_path / "out") == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def save_and_be_killed(source: Path, out: Path, strike: str) -> int:
    """Load and save in a child of this process, which kills itself where it opens a file of that name; how it ended."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def count(event: str, given: tuple[object, ...]) -> None:
        if event == "open" and "/.tmp-" in str(given[0]) and str(given[0]).endswith(strike) and "w" in str(given[1]):
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        save(*load(source, device="cpu"), out)
    finally:
        os._exit(0)


@pytest.mark.parametrize("strike", ["config.json", "tokenizer_config.json", MARK])
def test_a_kill_in_the_middle_of_a_save_leaves_the_old(strike: str, source: Path, tmp_path: Path) -> None:
    """With the weights not yet, and already written, and before the exchange."""
    out = tmp_path / "out" / "model"
    model, tokenizer = load(source, device="cpu")
    with torch.no_grad():
        model.model.norm.weight += 1
    save(model, tokenizer, out)
    before = content(out)
    assert save_and_be_killed(source, out, strike) == -signal.SIGKILL
    assert content(out) == before
    save(model, tokenizer, out)
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_a_folder_of_a_user_is_no_place_for_a_recovery(tmp_path: Path) -> None:
    from mgaa.errors import InputError
    from mgaa.recovery.job import Job
    from mgaa.recovery.plan import Plan

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("mine")
    with pytest.raises(InputError, match=r"holds model but no job.json: give a new folder"):
        Job(tmp_path, "a", "b", "c", Plan()).claim()
    job = Job(tmp_path / "job", "a", "b", "c", Plan())
    job.claim()
    (job.folder / "checkpoint-mine").mkdir()
    assert job.checkpoint() is None
    assert (job.folder / "checkpoint-mine").is_dir()
