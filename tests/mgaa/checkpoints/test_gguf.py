"""A GGUF file becomes a Hugging Face folder: every number is the dequantized one, and whatever does not fit is refused before any work."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import mgaa
from mgaa.checkpoints.folder import backbone_files, gguf_file
from mgaa.checkpoints.load import config_and_processor
from mgaa.checkpoints.meta_model import load_meta_model
from mgaa.errors import InputError, MgaaError, UsageError
from tests.support.gguf_files import CHAT, tiny_llama, write_gguf
from tests.support.laboratory import documents

TEXT = "bada gefu 12 345\n  x"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_llama()


@pytest.fixture(scope="module")
def file(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model, matrices="Q4_1")


def dequantized(model: PreTrainedModel, matrices: str, embedding: str) -> dict[str, Any]:
    """Every tensor quantized and dequantized by the package `gguf`; a row is quantized on its own, so their order changes nothing."""
    found = {}
    for name, tensor in model.state_dict().items():
        kind = "F32" if tensor.ndim == 1 else embedding if "embed" in name or "lm_head" in name else matrices
        chosen = gguf.GGMLQuantizationType[kind]
        found[name] = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), chosen), chosen))
    return found


@pytest.mark.parametrize(("matrices", "dtype"), [("Q4_1", "float32"), ("Q8_0", "auto"), ("F16", "float32")])
def test_every_number_is_the_dequantized_one(matrices: str, dtype: str, model: PreTrainedModel, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "x.gguf", model, matrices=matrices, embedding="Q8_0")
    mgaa.convert_gguf(source, tmp_path / "out", dtype=dtype)
    loaded = mgaa.load(tmp_path / "out")[0]
    expected = {name: each.to(loaded.dtype) for name, each in dequantized(model, matrices, "Q8_0").items()}
    assert loaded.dtype == (torch.bfloat16 if dtype == "auto" else torch.float32)
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_logits_and_texts_are_those_of_transformers_own_reader(file: Path, tmp_path: Path) -> None:
    mgaa.convert_gguf(file, tmp_path / "out", dtype="float32")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ids = torch.arange(2, 40)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    told = [each.generate(ids, max_new_tokens=8, do_sample=False) for each in (ours, theirs)]
    assert torch.equal(*told)


def test_the_config_and_the_tokenizer_are_those_of_the_model(
    file: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    record = mgaa.convert_gguf(file.parent, tmp_path / "out")
    config, tokenizer = config_and_processor(tmp_path / "out")
    given = {
        **model.config.to_dict(),
        "dtype": "bfloat16",
        "initializer_range": 0.02,
        "architectures": ["LlamaForCausalLM"],
        "_name_or_path": str(tmp_path / "out"),
    }
    assert {key: each for key, each in config.to_dict().items() if each != given.get(key)} == {}
    original = AutoTokenizer.from_pretrained(file.parent / "tokenizer")
    for text in [TEXT, *documents(seed=2, number=3)]:
        assert tokenizer(text).input_ids == original(text).input_ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template) == (0, 1, CHAT)
    kinds = {"Q4_1": 14, "F32": 5, "Q8_0": 1}
    assert record == json.loads((tmp_path / "out" / "dequantized.json").read_text())
    assert (record["file"], record["tensors"]) == ("tiny.gguf", kinds)
    assert tmp_path / "out" / "dequantized.json" in backbone_files(tmp_path / "out")


def test_single_digits_are_split_as_the_model_was_trained(model: PreTrainedModel, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "x.gguf", model, split="smollm")
    tokenizer = mgaa.load(source)[1]
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in pieces] == ["a", "ĠĠ", "1", "2"]


def test_a_head_of_its_own_and_a_tied_one_stay_so(file: Path, tmp_path: Path) -> None:
    untied = write_gguf(tmp_path / "x.gguf", tiny_llama(tied=False), matrices="Q4_0")
    for source, tied in ((file, True), (untied, False)):
        loaded = mgaa.load(source)[0]
        assert loaded.config.tie_word_embeddings is tied
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied


def test_without_quantized_tensors_the_dtype_is_that_of_the_file(model: PreTrainedModel, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "x.gguf", model, matrices="F16", embedding="F16")
    loaded = mgaa.load(source)[0]
    assert loaded.dtype == torch.float16
    assert all(torch.equal(tensor, model.state_dict()[name].half()) for name, tensor in loaded.state_dict().items())


def test_a_plan_knows_the_shapes_of_a_file(file: Path) -> None:
    planned, loaded = load_meta_model(file), mgaa.load(file)[0]
    shapes = [{name: (each.shape, each.dtype) for name, each in one.state_dict().items()} for one in (planned, loaded)]
    assert shapes[0] == shapes[1]


def test_a_conversion_replaces_an_earlier_one_and_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        mgaa.convert_gguf(file, tmp_path / "out")
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]


def retype(kind: int) -> Callable[[Path], object]:
    """Give the last norm another type of ggml, of the same size."""

    def change(path: Path) -> None:
        tensor = next(each for each in gguf.GGUFReader(path, "r+").tensors if each.name == "output_norm.weight")
        tensor.field.parts[4][0] = kind

    return change


def truncate(size: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:size])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no GGUF file": (lambda path: path.write_bytes(b"PK" * 100), "cannot be read as a GGUF file"),
    "empty": (truncate(0), "cannot be read as a GGUF file"),
    "half a header": (truncate(300), "cannot be read as a GGUF file"),
    "without the last tensor": (truncate(-200), "cannot be read as a GGUF file"),
    "a type that nobody knows": (retype(99), r"99\)? is not a valid GGMLQuantizationType"),
    "a type without numbers": (retype(26), "output_norm.weight in .* is of the type I32, which cannot be dequantized"),
}
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown architecture": ({"architecture": "nonesuch"}, "architecture nonesuch is not supported yet"),
    "architecture without an entry": ({"architecture": "nemotron"}, "architecture 'nemotron' has no entry"),
    "unknown setting": ({"settings": {"llama.rope.scaling.type": "yarn"}}, "sets llama.rope.scaling.type to 'yarn'"),
    "unknown tensor": (
        {"change": lambda arrays: arrays.update({"rope_freqs.weight": np.ones(8, np.float32)})},
        "rope_freqs.weight in .* has no place in LlamaForCausalLM",
    ),
    "missing tensor": (
        {"change": lambda arrays: arrays.pop("blk.1.ffn_up.weight")},
        "has 0 numbers for model.layers.1.mlp.up_proj.weight, expected 6144",
    ),
    "missing block": (
        {"change": lambda arrays: [arrays.pop(name) for name in list(arrays) if name.startswith("blk.1.")]},
        "has 1 blocks, its header says 2",
    ),
    "another size": (
        {"change": lambda arrays: arrays.update({"output_norm.weight": np.ones(32, np.float32)})},
        "has 32 numbers for model.norm.weight, expected 64",
    ),
    "a part": ({"settings": {"split.count": 3}}, "is one of 3 parts"),
    "unknown rule of the tokenizer": ({"split": "nonesuch"}, "splits text by the rule 'nonesuch'"),
}


def assert_refused(source: Path, folder: Path, error: type[MgaaError], message: str) -> None:
    """Neither converted nor loaded; nothing is written."""
    with pytest.raises(error, match=message):
        mgaa.convert_gguf(source, folder / "out")
    with pytest.raises(error, match=message):
        mgaa.load(source)
    assert not (folder / "out").exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".tmp")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage: str, file: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(file, tmp_path / "x.gguf"))
    DAMAGES[damage][0](source)
    assert_refused(source, tmp_path, InputError, DAMAGES[damage][1])


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_has_no_place_in_the_model_is_refused(misfit: str, model: PreTrainedModel, tmp_path: Path) -> None:
    given, message = MISFITS[misfit]
    assert_refused(write_gguf(tmp_path / "x.gguf", model, **given), tmp_path, InputError, message)


def test_a_source_that_names_no_file_or_two_is_refused(file: Path, tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent.gguf", tmp_path, InputError, "no GGUF file at")
    folder = tmp_path / "two"
    folder.mkdir()
    with pytest.raises(UsageError, match="is no GGUF file"):
        mgaa.convert_gguf(folder, tmp_path / "out")
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(file, folder / name)
    assert_refused(folder, tmp_path, UsageError, r"has 2 GGUF files \(a.gguf, b.gguf, ...\): name one")
    assert gguf_file(folder / "a.gguf") == folder / "a.gguf"


def test_a_file_has_no_revision_no_blocks_to_stream_and_no_other_dtypes(file: Path) -> None:
    with pytest.raises(UsageError, match="only Hub models have revisions"):
        mgaa.load(file, revision="0" * 40)
    with pytest.raises(UsageError, match="convert_gguf"):
        mgaa.load(file, stream=True)
    with pytest.raises(UsageError, match="dtype 'int8': expected one of auto"):
        mgaa.load(file, dtype="int8")


def test_a_folder_with_a_config_is_read_as_before(file: Path, tmp_path: Path) -> None:
    mgaa.convert_gguf(file, tmp_path / "out")
    shutil.copy(file, tmp_path / "out")
    assert gguf_file(tmp_path / "out") is None
    assert mgaa.load(tmp_path / "out")[0].dtype == torch.bfloat16


def test_without_the_package_the_message_says_how_to_get_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert_refused(file, tmp_path, UsageError, r"pip install 'mgaa\[gguf\]'")
