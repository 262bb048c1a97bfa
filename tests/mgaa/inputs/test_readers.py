"""The library takes models and tokens as users hold them, gives what it gives for plain ones, and refuses the rest before any work."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.errors import InputError, MgaaError, UsageError
from mgaa.evaluation.continuation import generate_continuations
from mgaa.evaluation.perplexity import perplexity
from mgaa.inputs.tokens import Stream, pack
from mgaa.models.lowrank import Factors

Build = Callable[..., PreTrainedModel]
Forward = Callable[[PreTrainedModel], Tensor]
LORA = peft.LoraConfig(target_modules=["q_proj"])
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (6, 24), generator=torch.Generator().manual_seed(0))


def padded(tokens: Tensor, side: str = "right") -> dict[str, Tensor]:
    """What a tokenizer gives that pads all rows to ten more."""
    more = (0, 10) if side == "right" else (10, 0)
    return {
        "input_ids": nn.functional.pad(tokens, more, value=3),
        "attention_mask": nn.functional.pad(torch.ones_like(tokens), more, value=0),
    }


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "lists": lambda ids: ids.tolist(),
    "an array": lambda ids: ids.numpy(),
    "an array of uint16": lambda ids: ids.numpy().astype(np.uint16),
    "int32": lambda ids: ids.int(),
    "a list of rows": lambda ids: list(ids),
    "batches": lambda ids: [ids[:4], ids[4:]],
    "a mapping": lambda ids: {"input_ids": ids},
    "a tokenizer's output": lambda ids: BatchEncoding({"input_ids": ids.tolist(), "attention_mask": [[1] * 24] * 6}),
    "rows of a data set": lambda ids: [{"input_ids": row, "attention_mask": [1] * 24} for row in ids.tolist()],
    "padded on the right": padded,
    "padded on the left": lambda ids: padded(ids, "left"),
    "a mask of booleans": lambda ids: {"input_ids": ids, "attention_mask": torch.ones_like(ids).bool()},
    "a generator": lambda ids: (row.tolist() for row in ids),
    "on its way from training": lambda ids: {"input_ids": ids, "labels": ids},
}


@pytest.mark.parametrize("form", FORMS)
def test_tokens_in_any_form_compress_as_the_tensor_does(
    form: str, tiny: Build, tokens: Tensor, logits: Forward
) -> None:
    plain, model = tiny(), tiny()
    assert mgaa.compress_(model, FORMS[form](tokens)) == mgaa.compress_(plain, tokens)
    assert torch.equal(logits(model), logits(plain))


def test_padding_never_enters_a_statistic(tiny: Build, tokens: Tensor, logits: Forward) -> None:
    masked = padded(tokens)
    masked["attention_mask"][0, 12:] = 0  # rows of two lengths
    apart, model = tiny(), tiny()
    rows = [tokens[0, :12].tolist(), *tokens[1:].tolist()]
    assert mgaa.compress_(model, masked) == mgaa.compress_(apart, rows)
    assert torch.equal(logits(model), logits(apart))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a text", r"tokens are text \('a text'\), expected token ids: tokenise it first"),
        (["two", "texts"], "tokens are text"),
        (torch.arange(20), r"tokens are one row, expected rows: .*mgaa\.inputs\.tokens\.windows"),
        ([1, 2, 3], "tokens are one row"),
        (Stream(torch.arange(20), 1, 20, 0, ""), "tokens are one row"),
        (torch.zeros(2, 0), "tokens are in torch.float32"),
        (torch.zeros(2, 0, dtype=torch.int64), "tokens have no tokens"),
        ([], "tokens have no tokens"),
        ([[1, 2], []], "tokens have no token in row 1"),
        (torch.ones(2, 8), "tokens are in torch.float32, expected token ids"),
        (torch.ones(2, 8, dtype=torch.bool), "tokens are in torch.bool"),
        ([[1.5, 2.0]], "tokens hold 1.5, expected token ids"),
        ([[True, False]], "tokens hold True"),
        (torch.ones(2, 8, 2, dtype=torch.int64), r"tokens are of shape \(2, 8, 2\)"),
        (torch.ones(2, 8, dtype=torch.int64, device="meta"), "tokens are on the meta device"),
        (None, "tokens hold None"),
        (torch.full((2, 8), 64), "Token ids run from 64 to 64, but the model has 64 embeddings"),
        (torch.ones(2, 65, dtype=torch.int64), r"has 65 tokens, expected at most 64 \(the model's positions\)"),
        ({"ids": [[1]]}, "tokens have the keys ids, expected input_ids"),
        ({"input_ids": [[1, 2]], "pixel_values": torch.ones(1)}, r"come with pixel_values, .*mgaa\.encode"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "attention_mask of tokens differs in shape from"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1]]}, "attention_mask of tokens differs in shape from"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "leaves tokens out in the middle of row 0"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[0, 0, 0]]}, "tokens have no tokens"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_no_tokens_is_refused_and_the_model_stays_as_it_was(
    family: str, given: Any, said: str, tiny: Build
) -> None:
    model = tiny(family)
    before = str(model)
    with pytest.raises(MgaaError, match=said):
        mgaa.compress_(model, given)
    assert str(model) == before


def compiled_in_place(model: PreTrainedModel) -> PreTrainedModel:
    model.compile(backend="eager")
    return model


def hooked(model: PreTrainedModel) -> PreTrainedModel:
    dispatched: PreTrainedModel = accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    return dispatched


def checkpointing(model: PreTrainedModel) -> PreTrainedModel:
    model.train().gradient_checkpointing_enable()
    return model


WRAPPERS: dict[str, Callable[[PreTrainedModel], Any]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": compiled_in_place,
    "dispatched to one device": hooked,
    "training": checkpointing,
    "merged adapters": lambda model: peft.get_peft_model(model, LORA).merge_and_unload(),
    "frozen": lambda model: model.requires_grad_(False),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_in_any_state_is_compressed_saved_and_measured_like_a_plain_one(
    wrapper: str,
    family: str,
    tiny: Build,
    tokens: Tensor,
    logits: Forward,
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    if wrapper == "merged adapters" and family == "gpt2":
        pytest.skip("has no q_proj")
    plain, model = tiny(family), tiny(family)
    wrapped = WRAPPERS[wrapper](model)
    assert mgaa.compress_(wrapped, tokens) == mgaa.compress_(plain, tokens)
    assert perplexity(wrapped, tokens.flatten(), length=24) == perplexity(plain, tokens.flatten(), length=24)
    mgaa.save(wrapped, words, tmp_path / "saved")
    assert torch.equal(logits(mgaa.load(tmp_path / "saved", device="cpu")[0]), logits(plain))


def test_a_training_model_with_dropout_gives_the_same_twins_and_keeps_the_mode_of_each_module(
    tiny: Build, tokens: Tensor, logits: Forward
) -> None:
    plain, model = tiny("gpt2"), tiny("gpt2").train()
    model.transformer.drop.eval()
    modes = [module.training for module in model.modules()]
    for settings in ({}, {"anchor": "stream"}):
        ((twin, report),) = mgaa.sweep(model, tokens, (0.2,), **settings)
        ((expected, told),) = mgaa.sweep(plain, tokens, (0.2,), **settings)
        assert report == told
        assert twin.training
        assert torch.equal(logits(twin.eval()), logits(expected))
    assert [module.training for name, module in model.named_modules() if "drop" in name] == [
        mode for (name, _), mode in zip(tiny("gpt2").named_modules(), modes, strict=True) if "drop" in name
    ]


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_where_in_a_program_the_library_is_called_changes_nothing(
    context: str, tiny: Build, tokens: Tensor, logits: Forward, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    plain, model = tiny(), tiny()
    mgaa.compress_(plain, tokens, anchor="stream")
    with CONTEXTS[context]():
        mgaa.compress_(model, tokens, anchor="stream")
        found = perplexity(model, tokens.flatten(), length=24)
        mgaa.save(model, words, tmp_path / "saved")
        loaded, _ = mgaa.load(tmp_path / "saved", device="cpu")
    assert found == perplexity(plain, tokens.flatten(), length=24)
    assert torch.equal(logits(model), logits(plain))
    assert torch.equal(logits(loaded), logits(plain))
    assert not any(parameter.is_inference() for parameter in (*model.parameters(), *loaded.parameters()))


def test_a_default_dtype_of_the_caller_changes_nothing_and_stays(tiny: Build, tokens: Tensor, logits: Forward) -> None:
    plain, model = tiny(), tiny()
    mgaa.compress_(plain, tokens)
    torch.set_default_dtype(torch.float64)
    try:
        mgaa.compress_(model, tokens)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(logits(model), logits(plain))


def offloaded(model: PreTrainedModel) -> PreTrainedModel:
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def another_forward(model: PreTrainedModel) -> PreTrainedModel:
    block = model.model.layers[0]
    own = block.forward
    block.forward = lambda *given, **named: own(*given, **named)
    return model


def with_layer(model: PreTrainedModel) -> PreTrainedModel:
    model.add_adapter(LORA)
    return model


def mixed(model: PreTrainedModel) -> PreTrainedModel:
    model.lm_head.double()
    return model


class Pipeline:
    """Something that holds a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model


def quantised(model: PreTrainedModel) -> Any:
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})


NO_MODELS: dict[str, tuple[Callable[[PreTrainedModel], Any], str]] = {
    "a path": (lambda model: "some/folder", r"model is 'some/folder', .*mgaa\.load\('some/folder'\)` loads it"),
    "nothing": (lambda model: None, "model is None, expected a model of transformers"),
    "a pair": (lambda model: (model, None), "returns both"),
    "another module": (lambda model: nn.Linear(3, 3), "model is a Linear, expected a model of transformers"),
    "in DataParallel": (nn.DataParallel, r"model is a DataParallel.*its `\.module`"),
    "in a pipeline": (Pipeline, r"model is a Pipeline.*its `\.model`"),
    "offloaded": (offloaded, r"tensors of model are offloaded by accelerate.*load it without device_map"),
    "without weights": (lambda model: model.to("meta"), "on the meta device .* load the weights"),
    "quantised": (quantised, "model is quantised .* start from the unquantised model"),
}
UNCHANGED: dict[str, tuple[Callable[[PreTrainedModel], Any], str]] = {
    "adapters": (lambda model: peft.get_peft_model(model, LORA), "adapters of peft in 2 places.*merge_and_unload"),
    "adapters of transformers": (with_layer, r"adapters of peft in 2 places.*merge_and_unload"),
    "no head": (lambda model: model.model, "model is a LlamaModel, which has no language-modelling head"),
    "another forward": (another_forward, r"forward other than that of its class in model\.layers\.0"),
    "several dtypes": (
        mixed,
        r"lm_head\.weight is in torch\.float64\): give it one dtype, model\.to\(torch\.float32\)",
    ),
}


@pytest.mark.parametrize("kind", NO_MODELS)
def test_what_is_no_model_in_memory_is_refused_by_every_function(
    kind: str, tiny: Build, tokens: Tensor, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make, said = NO_MODELS[kind]
    given: Any = make(tiny())
    calls: list[Callable[[], Any]] = [
        lambda: mgaa.compress_(given, tokens),
        lambda: mgaa.sweep(given, tokens, (0.2,)),
        lambda: mgaa.save(given, words, tmp_path / "saved"),
        lambda: mgaa.densify(given),
    ]
    if kind != "quantised":  # which runs
        calls += [
            lambda: perplexity(given, tokens.flatten(), length=24),
            lambda: generate_continuations(given, words, [[1, 2]], max_new_tokens=2),
        ]
    for call in calls:
        with pytest.raises(MgaaError, match=said):
            call()
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("kind", UNCHANGED)
def test_a_model_that_cannot_be_compressed_as_it_is_is_refused(kind: str, tiny: Build, tokens: Tensor) -> None:
    make, said = UNCHANGED[kind]
    model: Any = make(tiny())
    before = str(model)
    for call in (lambda: mgaa.compress_(model, tokens), lambda: mgaa.sweep(model, tokens, (0.2,))):
        with pytest.raises(MgaaError, match=said):
            call()
    assert str(model) == before


def test_adapters_count_where_a_model_is_only_run(tiny: Build, tokens: Tensor) -> None:
    model = peft.get_peft_model(tiny(), LORA)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    tuned = perplexity(model, tokens.flatten(), length=24)
    assert tuned != perplexity(tiny(), tokens.flatten(), length=24)
    assert tuned.nll == pytest.approx(perplexity(model.merge_and_unload(), tokens.flatten(), length=24).nll)


def test_weights_that_were_made_in_inference_mode_are_refused_where_gradients_are_needed_alone(
    tiny: Build, tokens: Tensor, logits: Forward
) -> None:
    plain = tiny()
    with torch.inference_mode():
        model = tiny()
    with pytest.raises(UsageError, match=r"made inside torch\.inference_mode"):
        mgaa.compress_(model, tokens, **mgaa.LOSS)
    mgaa.compress_(model, tokens)
    mgaa.compress_(plain, tokens)
    assert torch.equal(logits(model), logits(plain))


@pytest.mark.parametrize("given", [np.float64(0.25), torch.tensor(0.25), np.array(0.25)[()]])
def test_a_compression_is_a_number_of_any_kind(given: Any, tiny: Build, tokens: Tensor) -> None:
    assert mgaa.compress_(tiny(), tokens, compression=given) == mgaa.compress_(tiny(), tokens, compression=0.25)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compression": "0.2"}, r"compression is '0\.2', expected a number between 0 and 1"),
        ({"compression": 20}, r"compression is 20, .*e\.g\. 0\.2$"),
        ({"compression": 35}, r"compression is 35, .*e\.g\. 0\.35$"),
        ({"compression": True}, "compression is True"),
        ({"compression": None}, "compression is None"),
        ({"compression": float("nan")}, "compression is nan"),
        ({"batch_size": "8"}, "batch_size is '8', expected a whole number"),
        ({"batch_size": 2.5}, "batch_size is 2.5, expected a whole number"),
        ({"groups": None}, "groups is None, expected a whole number"),
        ({"expert_tokens": "4"}, "expert_tokens is '4', expected a number"),
        ({"factors": None}, "factors is None, expected a name, or a mapping"),
        ({"ranks": 3}, "ranks is 3, expected a name, or a mapping"),
        ({"parts": 3}, "parts is 3, expected names"),
        ({"parts": "decoders"}, "the parts to compress include decoders, expected some of"),
    ],
)
def test_a_setting_of_another_type_is_refused(settings: dict[str, Any], said: str, tiny: Build, tokens: Tensor) -> None:
    with pytest.raises(UsageError, match=said):
        mgaa.compress_(tiny(), tokens, **settings)


@pytest.mark.parametrize("given", [0.2, "0.2", None])
def test_a_sweep_asks_for_several_compressions(given: Any, tiny: Build, tokens: Tensor) -> None:
    with pytest.raises(UsageError, match="expected several fractions to remove"):
        mgaa.sweep(tiny(), tokens, given)


def test_one_text_is_scored_in_any_form(tiny: Build, words: PreTrainedTokenizerFast) -> None:
    model, text = tiny(), "w1 w2 w3 w4 w5 w6 w7 w8"
    stream = pack([text], words)
    expected = perplexity(model, stream.ids, length=8)
    batch = words("<s> " + text, return_tensors="pt")
    for given in (stream, stream.ids.tolist(), stream.ids.numpy(), batch, batch["input_ids"], stream.ids.int()):
        assert perplexity(model, given, length=8) == expected


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        (torch.ones(2, 8, dtype=torch.int64), {}, r"stream has 2 rows, expected one: .*ids\.flatten\(\)"),
        ("a text", {}, "stream are text"),
        ([], {}, "has 0 tokens, expected at least 2"),
        ([1, 2, 3], {"length": "8"}, "length is '8', expected a whole number"),
        ([1, 2, 3], {"batch_size": 0}, "batch size is 0, expected at least 1"),
    ],
)
def test_what_is_no_text_is_not_scored(given: Any, named: dict[str, Any], said: str, tiny: Build) -> None:
    with pytest.raises(MgaaError, match=said):
        perplexity(tiny(), given, **{"length": 8, **named})


@pytest.mark.parametrize("given", [None, "models/demo", torch.nn.Linear(2, 2)])
def test_what_is_no_tokenizer_is_refused(given: Any, tiny: Build, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"processor is .*, expected the tokenizer of the model"):
        mgaa.save(tiny(), given, tmp_path / "saved")
    with pytest.raises(UsageError, match=r"tokenizer is .*, expected the tokenizer of the model"):
        generate_continuations(tiny(), given, [[1]], max_new_tokens=1)


@pytest.mark.parametrize("given", [None, 3, ""])
def test_what_is_no_path_is_refused(given: Any, tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: mgaa.load(given),
        lambda: mgaa.save(tiny(), words, given),
        lambda: mgaa.densify_folder(given, tmp_path),
        lambda: mgaa.densify_folder(tmp_path, given),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="expected a path, as text or as a Path"):
            call()


def test_factors_go_into_models_alone() -> None:
    with pytest.raises(UsageError, match="model is a Linear, expected a model of transformers"):
        mgaa.apply_factors(nn.Linear(3, 3), {})


def test_a_compressed_model_is_not_compressed_again(tiny: Build, tokens: Tensor) -> None:
    model = tiny()
    mgaa.compress_(model, tokens)
    with pytest.raises(InputError, match="start from the dense backbone"):
        mgaa.compress_(model, tokens)


def test_factors_do_not_go_into_blocks_that_stay_in_their_files(
    tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path, tokens: Tensor
) -> None:
    mgaa.save(tiny(), words, tmp_path / "dense")
    model, _ = mgaa.load(tmp_path / "dense", stream=True, device="cpu")
    with pytest.raises(UsageError, match="is offloaded to its file and cannot be changed"):
        mgaa.apply_factors(model, {QUERY: Factors(torch.ones(2, 32), torch.ones(32, 2))})
    with pytest.raises(UsageError, match="load it without stream"):
        mgaa.compress_(model, tokens)
    with pytest.raises(UsageError, match=r"mgaa\.densify_folder\(source, target\)"):
        mgaa.densify(model)
