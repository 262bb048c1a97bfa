"""Whatever other libraries raise over a user's files is one error of ours, in one line; interrupts and mistakes of ours are neither."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.boundary import cause, one_error
from mgaa.checkpoints.load import config_and_processor
from mgaa.checkpoints.meta_model import skeleton
from mgaa.errors import InputError, MgaaError, NumericalError, ResourceError, UsageError
from mgaa.inputs.tokens import pack

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
TOKENS = torch.arange(40).reshape(2, 20)


class SilentError(Exception):
    """An error that cannot even be shown."""

    def __str__(self) -> str:
        raise AssertionError


RAISED = [
    *(kind("a value") for kind in (ImportError, AssertionError, RecursionError, LookupError, NotImplementedError)),
    *(kind() for kind in (Exception, ValueError, KeyError, StopIteration, EOFError)),
    ValueError("first line\n  second line\n\nthird"),
    RuntimeError("x " * 5000),
    KeyError("\ud800"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    OSError(28, "No space left on device"),
    ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
    SilentError(),
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
def test_whatever_is_raised_is_one_line_with_its_cause(raised: Exception) -> None:
    with pytest.raises(InputError) as caught, one_error("it cannot be read", "fetch it again"):
        raise raised
    said = str(caught.value)
    assert said.startswith(
        f"it cannot be read ({type(raised).__name__}" if type(raised) is not SilentError else "it cannot"
    )
    assert said.endswith("): fetch it again")
    assert len(said.splitlines()) == 1
    assert len(said.encode()) < 600
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), NumericalError("3 are NaN")])
def test_interrupts_and_errors_that_explain_themselves_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, one_error("it cannot be read", "fetch it again"):
        raise raised
    assert caught.value is raised


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 19 bytes"),
    ],
)
def test_memory_that_ran_out_is_a_resource(raised: Exception) -> None:
    with (
        pytest.raises(ResourceError, match=r"it cannot be read .*: give it more memory"),
        one_error("it cannot be read", ""),
    ):
        raise raised


def edit(name: str, **settings: Any) -> Callable[[Path], None]:
    """A change of some entries of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | settings))

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


@pytest.fixture
def folder(tiny: Callable[..., PreTrainedModel], words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    mgaa.save(tiny("llama"), words, tmp_path / "model")
    return tmp_path / "model"


CHARSMAP = base64.b64encode(b"\xff\xff\xff\x7f").decode()
UNREADABLE = {
    "a package that is missing": edit(CONFIG, attn_implementation="flash_attention_2"),
    "an assertion": edit(CONFIG, pad_token_id=100_000),
    "an attention that is none": edit(CONFIG, attn_implementation="fast"),
    "positions that are unknown": edit(CONFIG, rope_scaling={"type": "spiral", "factor": 2.0}),
    "an activation that is unknown": edit(CONFIG, hidden_act="spiral"),
    "a field of another type": edit(CONFIG, hidden_act=None),
    "a config that is deep": write(CONFIG, '{"model_type": "llama", "x": ' + '{"a":' * 900 + "1" + "}" * 901),
    "JSON that is deep": write(CONFIG, "[" * 100_000 + "]" * 100_000),
    "a vocabulary without end": edit(CONFIG, vocab_size=10**12),
    "blocks without end": edit(CONFIG, num_hidden_layers=10**9),
    "generation settings of another type": edit(GENERATION, max_new_tokens="many"),
    "a tokenizer of another kind": edit("tokenizer_config.json", tokenizer_class=3),
    "a tokenizer that contradicts itself": edit(
        TOKENIZER, model={"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}
    ),
    "a tokenizer that is unknown": edit(TOKENIZER, pre_tokenizer={"type": "Spiral"}),
    "a panic of Rust": edit(TOKENIZER, normalizer={"type": "Precompiled", "precompiled_charsmap": CHARSMAP}),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_transformers_does_not_load_is_one_error(folder: Path, what: str) -> None:
    UNREADABLE[what](folder)
    for stream in (False, True):
        with pytest.raises(InputError) as caught:
            mgaa.load(folder, device="cpu", stream=stream)
        assert str(folder) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("raised", [ImportError("no such package"), AssertionError(), RecursionError("too deep")])
@pytest.mark.parametrize("kind", [AutoTokenizer, AutoModelForCausalLM])
def test_every_call_of_transformers_is_behind_the_boundary(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, raised: Exception
) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise raised

    monkeypatch.setattr(kind, "from_pretrained", fail)
    with pytest.raises(InputError, match=type(raised).__name__):
        mgaa.load(folder, device="cpu")
    monkeypatch.setattr(kind, "from_config", fail, raising=False)
    if kind is AutoTokenizer:
        with pytest.raises(InputError, match=type(raised).__name__):
            config_and_processor(folder)
    else:
        with pytest.raises(InputError, match=type(raised).__name__):
            skeleton(folder)


@pytest.mark.parametrize("broken", [{"attn_implementation": "flash_attention_2"}, {"pad_token_id": 100_000}])
def test_a_plan_refuses_what_cannot_be_built(folder: Path, broken: dict[str, Any]) -> None:
    edit(CONFIG, **broken)(folder)
    with pytest.raises(InputError, match=r"cannot build a model of .*config.json \("):
        skeleton(folder)


def test_what_cannot_be_saved_is_refused_before_anything_is_measured(
    folder: Path, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    edit(CONFIG, output_attentions=True)(folder)
    model, _ = mgaa.load(folder, device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=r"cannot save the config of this LlamaForCausalLM .*output_attentions"):
        mgaa.compress_(model, TOKENS, compression=0.2, groups=2)
    assert before.keys() == model.state_dict().keys()
    with pytest.raises(
        UsageError, match=r"nothing was written .* cannot save this LlamaForCausalLM .*output_attentions"
    ):
        mgaa.save(model, words, tmp_path / "saved")
    model.config.output_attentions = False
    mgaa.compress_(model, TOKENS, compression=0.2, groups=2)
    mgaa.save(model, words, tmp_path / "saved")


@pytest.mark.parametrize("charsmap", ["AAAAAA==", CHARSMAP])
def test_a_panic_over_a_text_is_one_error(words: PreTrainedTokenizerFast, charsmap: str) -> None:
    content = json.loads(words.backend_tokenizer.to_str())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}

    def read_and_pack() -> None:
        with one_error("the tokenizer is damaged", "fetch it again"):
            broken = type(words.backend_tokenizer).from_str(json.dumps(content))
        pack(["w1", "w2 w3"], PreTrainedTokenizerFast(tokenizer_object=broken))

    with pytest.raises(InputError, match="PanicException"):
        read_and_pack()


def test_a_text_that_no_tokenizer_takes_is_named(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"cannot encode the documents 0 to 1 \("):
        pack(["w1", "\ud800"], words)


def test_a_cause_says_what_failed() -> None:
    assert cause(KeyError("x")) == "KeyError: 'x'"
    assert cause(AssertionError()) == "AssertionError"
    assert issubclass(InputError, MgaaError)
