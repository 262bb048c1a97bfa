"""Truths of the sums: whoever measures which sequences, and in whichever micro-batches, the bits are the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from mgaa.errors import UsageError
from mgaa.models.architectures import stacks_of
from mgaa.models.fused import unfuse_
from mgaa.statistics.block_sums import BlockSums
from mgaa.statistics.calibration import Calibration, CalibrationSettings, merge, stream_statistics
from mgaa.statistics.shares import Pairwise, Share
from tests.mgaa.statistics.test_calibration import same

Tiny = Callable[..., PreTrainedModel]


class Text:
    """A sum that shows its order."""

    def __init__(self, text: str) -> None:
        self.text = text

    def merge_(self, other: "Text") -> "Text":
        self.text = f"({self.text}{other.text})"
        return self


@pytest.mark.parametrize(
    ("leaves", "order"),
    [("abcd", "((ab)(cd))"), ("abcdefgh", "(((ab)(cd))((ef)(gh)))"), ("a", "a"), ("a-cd", "(a(cd))")],
)
def test_leaves_are_merged_as_a_binary_tree(leaves: str, order: str) -> None:
    tree = Pairwise[Text]()
    for leaf in leaves:
        tree.push(None if leaf == "-" else Text(leaf))
    total = tree.total()
    assert total is not None
    assert total.text == order


@pytest.mark.parametrize("sequences", [1, 2, 3, 5, 8, 13, 64])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_shares_cover_the_sequences_once_in_the_same_micro_batches(sequences: int, size: int) -> None:
    whole = Share(sequences).batches(size)
    assert [sequence for batch in whole for sequence in batch] == [*range(sequences)]
    assert max(map(len, whole)) <= size
    for of in (1, 2, 4, 8):
        if of <= Share(sequences).all_parts:
            assert [batch for index in range(of) for batch in Share(sequences, index, of).batches(size)] == whole


@pytest.mark.parametrize(("sequences", "of"), [(4, 3), (3, 4), (100, 16), (8, 0)])
def test_shares_that_are_no_branches_of_the_tree_are_refused(sequences: int, of: int) -> None:
    with pytest.raises(UsageError, match=rf"cut into {of} shares, expected one of 1.*statistics\.shards"):
        Share(sequences, 0, of)


@pytest.mark.parametrize("family", ["llama", "phi", "qwen2_moe", "falcon"])
@pytest.mark.parametrize("of", [2, 4])
def test_shares_merged_in_order_have_the_bits_of_one_worker(tiny: Tiny, family: str, of: int, tmp_path: Path) -> None:
    """An expert may have no token in a share; the sums of a share pass through a file."""
    model, tokens = unfuse_(tiny(family)), torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))
    measuring = CalibrationSettings(groups=3, batch_size=2, expert_tokens=0.5)
    shares: list[list[BlockSums]] = []
    for index in range(of):
        calibration = Calibration(model, tokens, measuring, share=Share(6, index, of))
        shares.append([])
        for block in range(len(calibration)):
            calibration.measure_sums(block).save(tmp_path / "sums.safetensors")
            shares[-1].append(BlockSums.load(tmp_path / "sums.safetensors"))
            calibration.commit()
    for block, whole in enumerate(stream_statistics(model, tokens, groups=3, batch_size=4, expert_tokens=0.5)):
        merged = merge(stacks_of(model)[0], block, [share[block] for share in shares], measuring, 6)
        assert same(merged, whole)
        assert merged.shared == whole.shared
