"""Models are asked whether they look ahead; those that do are refused, and every other keeps its numbers, whatever its architecture."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import mgaa
from mgaa.errors import InputError
from mgaa.evaluation.causality import check_causal, check_decoder, probe_ids, results_differ
from mgaa.evaluation.perplexity import perplexity
from tests.mgaa.conftest import FAMILIES, SHAPE

TOKENS = torch.randint(0, 60, (101,), generator=torch.Generator().manual_seed(1))
READERS = {
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2, "state_size": 8, "n_groups": 1},
    "xlstm": {"num_heads": 4},
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "mamba_dt_rank": 4},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "head_dim": 8, "attention_window_size": 16},
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    "whisper": {
        "d_model": 32,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "pad_token_id": 3,
        "max_target_positions": 64,
    },
    "bloom": {"n_head": 4},
    "bert": {"is_decoder": True},
}
"""Decoders without an entry: states, hybrids, the halves of encoder-decoders, and one that has no `logits_to_keep`."""
ENCODERS = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 32},
    "xlm": {"emb_dim": 32, "n_heads": 4},
    "xlnet": {"d_model": 32, "n_head": 4, "d_inner": 48, "max_position_embeddings": ...},
}


def model_of(family, **settings):
    torch.manual_seed(0)
    given = {name: value for name, value in (SHAPE | settings).items() if value is not ...}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **given)).eval()


def in_full(model, length):
    """Mean loss of the windows, from all logits at once."""
    total = count = 0
    for start in range(0, len(TOKENS), length):
        window = TOKENS[start : start + length]
        with torch.no_grad():
            logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].double()
        total -= logits.log_softmax(-1)[range(len(window) - 1), window[1:]].sum().item()
        count += len(window) - 1
    return total / count


@pytest.mark.parametrize("family", READERS)
def test_a_decoder_of_any_architecture_has_a_perplexity(family):
    model = model_of(family, **READERS[family])
    assert perplexity(model, TOKENS, length=30).nll == pytest.approx(in_full(model, 30), rel=1e-6)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_has_no_perplexity(family):
    with pytest.raises(InputError, match=rf"\(model_type {family}\) looks ahead.* give a causal language model"):
        perplexity(model_of(family, **ENCODERS[family]), TOKENS, length=30)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_an_encoder_is_known_in_any_precision(dtype):
    with pytest.raises(InputError, match="looks ahead"):
        perplexity(model_of("bert").to(dtype), TOKENS, length=30)


@pytest.mark.parametrize("family", FAMILIES)
def test_entries_are_of_decoders(tiny, family):
    check_decoder(tiny(family))


@pytest.mark.parametrize(
    ("family", "settings"), [("llama", {"is_causal": False}), ("gemma3_text", {"use_bidirectional_attention": True})]
)
def test_a_decoder_whose_mask_is_turned_off_is_neither_measured_nor_compressed(tiny, family, settings):
    model = tiny(family, **settings)
    with pytest.raises(InputError, match="looks ahead"):
        perplexity(model, TOKENS, length=30)
    with pytest.raises(InputError, match="looks ahead"):
        mgaa.compress_(model, TOKENS[:96].view(6, 16), groups=2)


def test_a_streamed_model_that_looks_ahead_has_no_perplexity(tiny, tmp_path, words):
    mgaa.save(tiny(is_causal=False), words, tmp_path)
    model, _ = mgaa.load(tmp_path, device="cpu", stream=True)
    with pytest.raises(InputError, match="looks ahead"):
        perplexity(model, TOKENS, length=30)


def test_what_a_model_raises_over_ids_alone_is_one_message_with_the_cause():
    model = model_of("xmod", default_language=None)
    with pytest.raises(
        InputError, match=r"Xmod.* does not accept 30 token ids alone \(ValueError: Input language unknown"
    ):
        perplexity(model, TOKENS, length=30)


def test_a_window_beyond_positions_that_no_config_names_is_one_message():
    model = model_of("whisper", **READERS["whisper"] | {"max_target_positions": 16})
    with pytest.raises(InputError, match=r"does not accept 30 token ids alone.* take shorter windows"):
        perplexity(model, TOKENS, length=30)


def test_a_probe_differs_in_its_second_half_alone_whatever_the_text():
    for text in (TOKENS, torch.zeros(7, dtype=torch.int64), torch.tensor([3, 59])):
        first, other = probe_ids(text, 60)
        assert len(first) == min(len(text), 32)
        same = first == other
        assert same[: len(first) // 2].all()
        assert not same[len(first) // 2 :].any()


def test_rounding_is_no_difference_and_what_is_not_finite_is_left_to_others():
    one = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert not results_differ(one, one * (1 + 4e-7))
    assert results_differ(one, one + 0.01)
    assert not results_differ(one.bfloat16(), one.bfloat16() * (1 + 2**-7))
    assert not results_differ(one, one * torch.nan)
    check_causal(model_of("bert"), torch.full((2, 6, 8), torch.nan))
