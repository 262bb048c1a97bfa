"""Examples hold what a model is tuned on: the right tokens, of which the right ones are scored, however they are batched."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mgaa.errors import InputError, ResourceError, UsageError
from mgaa.recovery import Examples, from_instructions, from_windows, read_instructions
from mgaa.recovery.examples import UNSCORED, collate, prompt_of

ROW = {"instruction": "w1 w2", "input": "", "output": "w3 w4"}


def by_hand(words: PreTrainedTokenizerFast, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    before = [61, *words(prompt, add_special_tokens=False)["input_ids"]]
    after = [*words(answer, add_special_tokens=False)["input_ids"], 62]
    return before, after


def test_the_prompt_is_that_of_alpaca() -> None:
    assert prompt_of(ROW) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nw1 w2\n\n### Response:\n"
    )
    assert prompt_of(ROW | {"input": "w5"}) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nw1 w2\n\n### Input:\nw5\n\n### Response:\n"
    )


@pytest.mark.parametrize("context", ["", "w5 w6"])
def test_only_the_answer_is_scored(words: PreTrainedTokenizerFast, context: str) -> None:
    row = ROW | {"input": context}
    prompt, answer = by_hand(words, prompt_of(row), "w3 w4")
    example = from_instructions([row], words)[0]
    assert example["input_ids"].tolist() == prompt + answer
    assert example["labels"].tolist() == [UNSCORED] * len(prompt) + answer


def test_prompts_are_scored_too_on_request(words: PreTrainedTokenizerFast) -> None:
    prompt, answer = by_hand(words, prompt_of(ROW), "w3 w4")
    example = from_instructions([ROW], words, scored="all")[0]
    assert example["labels"].tolist() == [UNSCORED, *prompt[1:], *answer]


def test_long_rows_are_cut_and_lose_their_end_mark(words: PreTrainedTokenizerFast) -> None:
    prompt, answer = by_hand(words, prompt_of(ROW), "w3 w4")
    example = from_instructions([ROW], words, length=len(prompt) + 1)[0]
    assert example["input_ids"].tolist() == prompt + answer[:1]


def test_rows_without_an_answer_are_dropped_and_counted(words: PreTrainedTokenizerFast) -> None:
    long = ROW | {"instruction": "w1 " * 300}
    found = from_instructions([ROW, ROW | {"output": ""}, ROW | {"output": "  "}, long], words)
    assert (len(found), found.dropped) == (1, 3)


def test_a_token_across_the_boundary_counts_as_answer(words: PreTrainedTokenizerFast) -> None:
    class Joined(PreTrainedTokenizerFast):  # type: ignore[misc]
        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[1, 2, 3] if text.endswith(":\n") else [1, 2, 4, 5] for text in texts]}

    joined = Joined(tokenizer_object=words.backend_tokenizer)
    assert from_instructions([ROW], joined)[0]["labels"].tolist() == [UNSCORED, UNSCORED, 4, 5]


def test_windows_are_scored_from_the_second_token_on() -> None:
    examples = from_windows(torch.arange(10).reshape(2, 5))
    assert examples[1]["input_ids"].tolist() == [5, 6, 7, 8, 9]
    assert examples[1]["labels"].tolist() == [UNSCORED, 6, 7, 8, 9]
    assert (len(examples), examples.scored, examples.longest) == (2, 8, 5)


def test_padding_changes_neither_the_loss_nor_its_weights(tiny: Callable[..., PreTrainedModel]) -> None:
    model, generator = tiny().double(), torch.Generator().manual_seed(0)
    parts = [torch.randint(0, 60, (length,), generator=generator) for length in (5, 9, 3)]
    singles = [{"input_ids": part, "labels": torch.cat([torch.tensor([UNSCORED]), part[1:]])} for part in parts]
    batch = collate(singles)
    assert batch["input_ids"].shape == (3, 9)
    assert batch["attention_mask"].sum(1).tolist() == [5, 9, 3]
    assert (batch["labels"] != UNSCORED).sum() == 4 + 8 + 2

    def total(batch: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")

    expected = torch.stack([total(collate([single])) for single in singles]).sum()
    torch.testing.assert_close(total(batch), expected, rtol=1e-12, atol=1e-12)


def test_saved_examples_are_the_same_bytes_and_load_to_the_same(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    examples = from_instructions([ROW, ROW | {"output": ""}], words)
    for name in ("a", "b"):
        examples.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Examples.load(tmp_path / "a")
    assert (loaded.digest, loaded.dropped) == (examples.digest, 1)


def test_the_digest_sees_tokens_labels_and_boundaries() -> None:
    whole = from_windows(torch.arange(12).reshape(2, 6))
    others = [
        Examples(whole.ids + 1, whole.labels, whole.starts),
        Examples(whole.ids, whole.ids, whole.starts),
        Examples(whole.ids, whole.labels, torch.tensor([0, 5, 12])),
    ]
    assert len({each.digest for each in (whole, *others)}) == 4


def test_a_file_that_holds_no_examples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no")
    with pytest.raises(InputError, match=r"holds no examples of mgaa .* prepare them again"):
        Examples.load(tmp_path / "x")


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"cannot be written to .*make room"):
        from_windows(torch.arange(10).reshape(2, 5)).save(tmp_path / "missing" / "x")


def test_windows_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="There are 3 windows of 1 tokens, expected at least one of at least two"):
        from_windows(torch.zeros(3, 1, dtype=torch.int64))


def test_rows_of_which_nothing_is_left_are_refused(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="None of the 1 rows has an answer within its first 5 tokens: raise"):
        from_instructions([ROW], words, length=5)


@pytest.mark.parametrize(("length", "scored"), [(1, "answer"), (256, "prompt")])
def test_unknown_settings_are_refused(words: PreTrainedTokenizerFast, length: int, scored: str) -> None:
    with pytest.raises(UsageError, match=f"length is {length} and scored '{scored}'"):
        from_instructions([ROW], words, length=length, scored=scored)  # type: ignore[arg-type]


def test_a_row_without_a_field_is_named(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"row 2 holds \{'instruction': 'str'\}, expected the texts instruction"):
        from_instructions([ROW, {"instruction": "w1"}], words)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", json.dumps([ROW, ROW])), ("a.jsonl", json.dumps(ROW) + "\n\n" + json.dumps(ROW) + "\n")],
)
def test_both_formats_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_instructions(tmp_path / name) == [ROW, ROW]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[", r"a.json cannot be read as JSON .* give a file on this machine with a list of objects"),
        ("a.jsonl", "{}\nx", r"a.jsonl cannot be read as JSON"),
        ("a.json", '{"data": []}', r"a.json holds a dict, expected a list of objects"),
        ("a.json", "[3]", r"row 1 of .*a.json holds 3, expected the texts"),
        ("a.json", '[{"instruction": "a", "input": null, "output": "b"}]', r"row 1 .*'input': 'NoneType'.* correct"),
        ("b.json", None, r"b.json cannot be read as JSON .*No such file"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_instructions(tmp_path / name)
