"""What is saved, loads: what would not is refused before anything is written, and a streamed model is saved to the same bytes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.checkpoints.save import apply_dense, save_blockwise
from mgaa.errors import MgaaError, NumericalError, UsageError
from mgaa.models.fused import unfuse_
from mgaa.models.lowrank import Dense

Build = Callable[..., PreTrainedModel]
Forward = Callable[[PreTrainedModel], Tensor]
QUERY = "model.layers.0.self_attn.q_proj"


def digests(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_bias(model: PreTrainedModel) -> PreTrainedModel:
    weight = model.get_submodule(QUERY).weight.detach()
    apply_dense(model, {QUERY: Dense(weight, torch.randn(len(weight)))})
    return model


def told(**entries: object) -> Callable[[PreTrainedModel], PreTrainedModel]:
    def edit(model: PreTrainedModel) -> PreTrainedModel:
        for name, value in entries.items():
            setattr(model.config, name, value)
        return model

    return edit


def changed(edit: Callable[[Any], Any]) -> Callable[[PreTrainedModel], PreTrainedModel]:
    def change(model: PreTrainedModel) -> PreTrainedModel:
        edit(model)
        return model

    return change


def classifier(model: PreTrainedModel) -> PreTrainedModel:
    made: PreTrainedModel = LlamaForSequenceClassification(model.config)
    return made


UNLOADABLE: dict[str, tuple[Callable[[PreTrainedModel], PreTrainedModel], str]] = {
    "a bias on a dense matrix": (with_bias, rf"unexpected {QUERY}\.bias\. Leave the biases out, or .*mgaa\.densify"),
    "another vocabulary": (told(vocab_size=70), r"of another shape lm_head\.weight, model\.embed_tokens\.weight"),
    "another width": (told(hidden_size=64), "of another shape .* and 18 more"),
    "more blocks": (told(num_hidden_layers=3), "the decoder has 2 blocks, but its config says 3"),
    "other heads": (told(num_key_value_heads=4), r"of another shape model\.layers\.0\.self_attn\.k_proj"),
    "a flag of biases": (told(attention_bias=True), r"missing model\.layers\.0\.self_attn\.k_proj\.bias"),
    "a padding token beyond the vocabulary": (told(pad_token_id=1000), "Padding_idx"),
    "code of its own": (told(auto_map={"AutoModel": "x.Y"}), r"config\.json requires custom code"),
    "a config that is no JSON": (told(note=object()), "not JSON serializable"),
    "a dropped block": (changed(lambda m: m.model.layers.pop(0)), "the decoder has 1 blocks"),
    "a module of the user": (changed(lambda m: m.add_module("extra", nn.Linear(2, 2))), r"unexpected extra\.bias"),
    "a buffer of the user": (changed(lambda m: m.register_buffer("steps", torch.zeros(1))), "unexpected steps"),
    "a head in another dtype": (changed(lambda m: m.lm_head.double()), r"a dtype other than torch\.float32 lm_head"),
    "a norm in another dtype": (
        changed(lambda m: m.model.norm.half()),
        r"Give it one dtype, model\.to\(torch\.float32",
    ),
    "tensors tied by hand": (
        changed(lambda m: setattr(m.lm_head, "weight", m.model.embed_tokens.weight)),
        r"missing lm_head\.weight\. .*set model\.config\.tie_word_embeddings",
    ),
    "shared blocks": (changed(lambda m: m.model.layers.__setitem__(1, m.model.layers[0])), "shared tensors"),
    "no head": (
        lambda m: m.model,
        r"missing lm_head\.weight\. mgaa\.load only takes models with a language-modelling head",
    ),
    "another head": (classifier, r"unexpected score\.weight.*model\.save_pretrained\(folder\) keeps this class"),
    "settings that are no JSON": (
        changed(lambda m: setattr(m.generation_config, "note", object())),
        "not JSON serializable",
    ),
}


@pytest.mark.parametrize("kind", UNLOADABLE)
def test_what_would_not_load_is_refused_before_anything_is_written(
    kind: str, tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make, said = UNLOADABLE[kind]
    model = make(tiny())
    before = str(model)
    with pytest.raises(UsageError, match=f"nothing was written to .*saved, because it would not load: .*{said}"):
        mgaa.save(model, words, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert str(model) == before


def test_a_bias_that_its_class_lacks_is_kept_by_densify(
    tiny: Build, words: PreTrainedTokenizerFast, logits: Forward, tmp_path: Path
) -> None:
    model = with_bias(tiny())
    before = logits(model)
    mgaa.save(mgaa.densify(model), words, tmp_path / "saved")
    assert torch.equal(logits(mgaa.load(tmp_path / "saved", device="cpu")[0]), before)


def test_a_number_that_is_not_finite_is_refused_before_anything_is_written(
    tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny()
    model.model.norm.weight.data[3] = float("inf")
    with pytest.raises(NumericalError, match=r"model\.norm\.weight has 1 non-finite entries of 32"):
        mgaa.save(model, words, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def with_more_words(words: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    words.add_tokens(["new0", "new1"])
    return words


def with_code(words: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    words.init_kwargs["auto_map"] = {"AutoTokenizer": ["x.Y", None]}
    return words


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (with_more_words, "ids up to 64, the embedding has 64 rows"),
        (with_code, r"tokenizer_config\.json requires custom code"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_tokenizer_that_would_not_load_beside_the_model_is_refused(
    streamed: bool,
    make: Callable[[PreTrainedTokenizerFast], PreTrainedTokenizerFast],
    said: str,
    tiny: Build,
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    model = tiny()
    if streamed:
        mgaa.save(model, words, tmp_path / "dense")
        model, _ = mgaa.load(tmp_path / "dense", stream=True, device="cpu")
    with pytest.raises(UsageError, match=said):
        mgaa.save(model, make(copy.deepcopy(words)), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("given", ["5 apples", "", 0, -1, "-1GB"])
def test_a_size_of_shards_that_is_none_is_refused(
    given: int | str, tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"max_shard_size is .*5GB"):
        mgaa.save(tiny(), words, tmp_path / "saved", max_shard_size=given)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3_moe"])
def test_a_streamed_model_is_saved_to_the_bytes_of_the_one_in_memory(
    family: str, apart: bool, tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    mgaa.save(tiny(family), words, tmp_path / "dense")
    model, tokenizer = mgaa.load(tmp_path / "dense", stream=True, device="cpu")
    mgaa.save(unfuse_(model) if apart else model, tokenizer, tmp_path / "saved")
    assert digests(tmp_path / "saved") == digests(tmp_path / "dense")


def test_a_streamed_compressed_model_is_saved_to_the_bytes_of_the_one_in_memory(
    tiny: Build, compress: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    mgaa.save(compress(tiny("gpt_neox")), words, tmp_path / "compressed")
    model, tokenizer = mgaa.load(tmp_path / "compressed", stream=True, device="cpu")
    mgaa.save(model, tokenizer, tmp_path / "saved")
    assert digests(tmp_path / "saved") == digests(tmp_path / "compressed")


def test_a_streamed_model_is_written_neither_over_its_files_nor_over_others(
    tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    mgaa.save(tiny(), words, tmp_path / "dense")
    before = digests(tmp_path / "dense")
    model, tokenizer = mgaa.load(tmp_path / "dense", stream=True, device="cpu")
    with pytest.raises(UsageError, match=r"dense is what is read, .*give another folder"):
        mgaa.save(model, tokenizer, tmp_path / "dense")
    assert digests(tmp_path / "dense") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"mine holds notes\.txt, which"):
        mgaa.save(model, tokenizer, tmp_path / "mine")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            lambda block: block.self_attn.q_proj.register_parameter("bias", nn.Parameter(torch.ones(32))),
            UsageError,
            "bias",
        ),
        (
            lambda block: block.mlp.up_proj.weight.data.fill_(float("nan")),
            NumericalError,
            r"layers\.0\.mlp\.up_proj\.weight",
        ),
    ],
)
def test_blocks_that_become_what_does_not_load_make_no_checkpoint(
    change: Callable[[Any], None],
    error: type[MgaaError],
    said: str,
    tiny: Build,
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    mgaa.save(tiny(), words, tmp_path / "dense")
    model, tokenizer = mgaa.load(tmp_path / "dense", stream=True, device="cpu")
    with pytest.raises(error, match=said):
        save_blockwise(model, tokenizer, tmp_path / "saved", change=lambda index: change(model.model.layers[index]))
    assert not (tmp_path / "saved/config.json").exists()
