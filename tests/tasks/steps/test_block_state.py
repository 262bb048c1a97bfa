"""What waits for another process in front of a block is taken up only where it is whole."""

from pathlib import Path

import pytest

from tasks.steps.block_state import told


@pytest.mark.parametrize("content", [None, "", '["abc"', "abc"])
def test_a_list_of_passed_blocks_that_is_not_whole_is_as_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "before.json").write_text(content)
    assert told(tmp_path) == []
