"""The state before a block is taken up where it is whole, and continues what it was made for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tasks.cache.artifact import Artifact
from tasks.steps.block_state import SequentialState, StateSlot, read_passed_factors

FACTORS = [Artifact("factors", digit * 64) for digit in "abc"]
NOTHING: Any = None


@pytest.fixture
def state(tmp_path: Path) -> SequentialState:
    """Behind the first block."""
    lock = FileLock(tmp_path / "lock")
    return SequentialState(("recipe",), (FACTORS[0],), NOTHING, NOTHING, NOTHING, tmp_path, lock)


@pytest.mark.parametrize("content", [None, "", '["abc"', "abc"])
def test_a_list_of_passed_blocks_that_is_not_whole_is_as_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "before.json").write_text(content)
    assert read_passed_factors(tmp_path) == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_state_is_taken_by_the_blocks_that_continue_it(state: SequentialState, number: int) -> None:
    slot = StateSlot()
    slot.keep(state)
    assert slot.take(("recipe",), FACTORS[:number]) is state
    assert slot.take(("recipe",), FACTORS[:number]) is None  # whoever takes it keeps it again


@pytest.mark.parametrize(
    ("key", "before"),
    [(("other",), FACTORS), (("recipe",), FACTORS[1:]), (("recipe",), [])],
    ids=["another recipe", "other factors", "an earlier block"],
)
def test_a_state_that_does_not_lead_to_the_block_is_dropped(
    state: SequentialState, key: tuple[Any, ...], before: list[Artifact]
) -> None:
    slot = StateSlot()
    slot.keep(state)
    assert slot.take(key, before) is None
    assert slot.take(state.key, FACTORS) is None


def test_an_empty_slot_gives_none_and_a_new_state_replaces_the_old_one(state: SequentialState) -> None:
    slot, newer = StateSlot(), replace(state, before=tuple(FACTORS[:2]))
    assert slot.take(state.key, FACTORS) is None
    slot.keep(state)
    slot.keep(newer)
    assert slot.take(state.key, FACTORS) is newer
