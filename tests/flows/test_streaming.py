"""Truths of a run whose blocks stay in their files: the same artifacts as in memory, and after a kill at most one block more."""

import re
from collections import Counter
from pathlib import Path

import pytest

from mgaa.blocks.blockwise import Blockwise
from tasks.cache.artifact import Store
from tasks.steps.block_state import own_folder
from tests.support.laboratory import BLOCKS, Outcome, TinyProject

pytestmark = pytest.mark.slow

STREAMED = ["backbone.stream=always", "backbone.hidden=disk"]
FEW = ["evaluation.tasks=[]", "evaluation.baselines=[]"]
KINDS = ("backbone", "tokens", "statistics", "spectra", "ratios", "ranks", "factors", "checkpoint", "metrics")


def digests(lab: TinyProject, kinds: tuple[str, ...] = KINDS) -> dict[str, list[str]]:
    return {kind: [folder.name for folder in lab.artifacts(kind)] for kind in kinds}


def unfinished(lab: TinyProject) -> list[Path]:
    return [*(lab.root / "store" / "unfinished").iterdir()]


def test_a_streamed_run_on_two_workers_leaves_the_artifacts_of_one_in_memory(
    fresh: TinyProject, first: tuple[TinyProject, Outcome]
) -> None:
    outcome = fresh.run(*STREAMED, "statistics.shards=2")
    assert (outcome.code, outcome.message) == (0, "")
    assert (outcome.executed["calibrate_share"], outcome.executed["merge_shares"]) == (2, 1)
    assert digests(fresh) == digests(first[0])
    assert unfinished(fresh) == []


def test_how_a_model_is_held_is_no_part_of_a_key(done: TinyProject) -> None:
    assert done.run(*STREAMED).executed == {}


def test_behind_compressed_blocks_as_well(done: TinyProject, fresh: TinyProject) -> None:
    lorap = ["method=lorap", *FEW]
    assert done.run(*lorap, "backbone.stream=never").code == 0
    before = digests(fresh, ("factors",))
    assert fresh.run(*lorap, *STREAMED).code == 0
    made = {kind: set(names) for kind, names in digests(fresh, ("factors", "checkpoint", "metrics")).items()}
    assert before == {"factors": []}
    assert all(names and names <= set(digests(done)[kind]) for kind, names in made.items())
    assert unfinished(fresh) == []


def test_two_runs_at_once_keep_their_tokens_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (first, held), (second, other) = own_folder(store, "line-x"), own_folder(store, "line-x")
    assert first == tmp_path / "unfinished" / "line-x"
    assert second != first
    held.release()
    assert own_folder(store, "line-x")[0] == first
    other.release()


def test_more_shards_than_sequences_and_shards_behind_compressed_blocks_are_refused(done: TinyProject) -> None:
    few = done.run("statistics.shards=8", "data.calibration.samples=5", "statistics.groups=1")
    assert few.code == 2
    assert (
        "calibration is cut into 8 shares, expected one of 1, 2, 4 with 5 sequences (statistics.shards)" in few.message
    )
    both = done.run("statistics.shards=2", "statistics.inputs=compressed")
    assert both.code == 2
    assert "each block waits for the one before it" in both.message


def killing(place: str) -> str:
    """Python that kills its own process where a file of this name (a regular expression) is about to be named or opened."""
    return f"""
import os, re, signal, sys
def strike(event, arguments):
    path = arguments[1] if event == "os.rename" else arguments[0] if event == "open" else None
    if path is not None and re.search({place!r}, str(path)):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(strike)
"""


KILLS = {
    "calibrate": (r"unfinished/\w+/block-0001", 1),
    "assemble": (r"unfinished/\w+/model/block-0002", 0),
    "measure_perplexity": (r"unfinished/\w+/hidden/passed-0003", 1),
}
"""Where a run is killed, and how many blocks the next one need not repeat."""


@pytest.mark.parametrize(
    "stage", ["calibrate", *(pytest.param(each, marks=pytest.mark.nightly) for each in KILLS if each != "calibrate")]
)
def test_a_run_that_is_killed_goes_on_at_the_block(
    stage: str,
    fresh: TinyProject,
    first: tuple[TinyProject, Outcome],
    prefect_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, spared = KILLS[stage]
    killed = fresh.finish(*STREAMED, *FEW, before=killing(place), PREFECT_API_URL=prefect_server)
    assert killed.code == -9, killed.message
    assert stage not in killed.executed
    left = {path.name for path in (fresh.root / "store" / "unfinished").rglob("*") if path.is_file()}
    assert any(re.match(r"block-|hidden-", name) for name in left)
    passed: Counter[int] = Counter()
    through = Blockwise.advance
    monkeypatch.setattr(
        Blockwise,
        "advance",
        lambda self, index, **options: (passed.update([index]), through(self, index, **options))[1],
    )
    outcome = fresh.run(*STREAMED, *FEW)
    assert (outcome.code, outcome.message) == (0, "")
    texts = 4 - killed.executed.get("measure_perplexity", 0)  # evaluation and validation, the dense model and the other
    whole = texts + (stage == "calibrate")
    assert passed == Counter({index: whole - (index < spared) for index in range(BLOCKS)})
    assert digests(fresh)["statistics"] == digests(first[0])["statistics"]
    assert all(
        set(names) <= set(digests(first[0])[kind]) for kind, names in digests(fresh).items() if kind != "metrics"
    )
    assert unfinished(fresh) == []
