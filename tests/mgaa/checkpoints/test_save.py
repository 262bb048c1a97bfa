"""A model that is saved and loaded is the same model: to the bit, in any process that knows the format, and in no other."""

import copy
import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.checkpoints.save import apply_factors, load, save, twin_of
from mgaa.errors import InputError, NumericalError, ResourceError, UsageError
from mgaa.models.architectures import matrices_of
from mgaa.models.fused import unfuse_
from mgaa.models.lowrank import Factors, LowRankLinear, low_rank_layers
from tests.mgaa.conftest import FAMILIES

Build = Callable[..., PreTrainedModel]
Forward = Callable[[PreTrainedModel], Tensor]
ROOT = Path(mgaa.__file__).parents[1]
QUERY = "model.layers.0.self_attn.q_proj"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def weights(model: PreTrainedModel) -> list[Tensor]:
    return [tensor for _, tensor in sorted(model.state_dict().items())]


@pytest.fixture
def saved(tiny: Build, compress: Build, words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A compressed llama on disk."""
    save(compress(tiny("llama")), words, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_factors_leave_the_logits_unchanged(
    family: str, tied: bool, tiny: Build, compress: Build, logits: Forward
) -> None:
    model = tiny(family, tie_word_embeddings=tied).double()
    before = logits(model)
    compress(model, keep=1.0, bias=False)
    assert len(low_rank_layers(model)) == len(matrices_of(unfuse_(tiny(family))))
    torch.testing.assert_close(logits(model), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("family", "dtype", "shards"),
    [
        *((family, torch.bfloat16, "12KB") for family in FAMILIES),
        *((family, torch.float32, "5GB") for family in ("llama", "qwen2_moe", "llava")),
    ],
)
def test_a_loaded_model_is_the_saved_one_to_the_bit(
    family: str,
    dtype: torch.dtype,
    shards: str,
    tiny: Build,
    compress: Build,
    logits: Forward,
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    tiny(family, tie_word_embeddings=True).to(dtype).save_pretrained(tmp_path / "dense")
    words.save_pretrained(tmp_path / "dense")
    backbone, tokenizer = load(tmp_path / "dense", device="cpu")
    save(compress(backbone), tokenizer, tmp_path / "saved", max_shard_size=shards)
    loaded, again = load(tmp_path / "saved", device="cpu")
    assert (tmp_path / "saved/model.safetensors.index.json").exists() == (shards != "5GB")
    assert loaded.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(weights(loaded), weights(backbone), strict=True))
    if hasattr(
        backbone.config, "num_experts_per_tok"
    ):  # few tokens per expert: kernels round by where weights lie in memory
        torch.testing.assert_close(logits(loaded), logits(backbone))
    else:
        assert torch.equal(logits(loaded), logits(backbone))
    save(loaded, again, tmp_path / "again", max_shard_size=shards)
    assert digests(tmp_path / "again") == digests(tmp_path / "saved")


@pytest.mark.parametrize("arguments", [{}, {"dtype": "float32"}, {"device_map": "cpu"}, {"device_map": "auto"}])
def test_transformers_loads_a_checkpoint_by_itself(
    arguments: dict[str, str], saved: Path, compress: Build, tiny: Build, logits: Forward
) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved, **arguments)
    assert torch.equal(logits(model), logits(compress(tiny("llama"))))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_checkpoint_loads_onto_a_gpu(saved: Path, logits: Forward) -> None:
    model, _ = load(saved)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
    torch.testing.assert_close(logits(model), logits(load(saved, device="cpu")[0]), rtol=1e-3, atol=1e-3)


def test_a_headless_model_loads_its_part(saved: Path) -> None:
    model = AutoModel.from_pretrained(saved)
    whole = AutoModelForCausalLM.from_pretrained(saved)
    assert isinstance(model.layers[0].mlp.up_proj, LowRankLinear)
    tokens = torch.arange(20)[None]
    assert torch.equal(model(tokens).last_hidden_state, whole.model(tokens).last_hidden_state)


def test_a_loaded_model_is_an_ordinary_model(saved: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved, dtype="bfloat16").float()
    tokens = torch.arange(20)[None]
    model(tokens, labels=tokens).loss.backward()
    assert model.model.layers[0].mlp.up_proj.A.weight.grad is not None
    assert {tensor.dtype for tensor in model.to(torch.bfloat16).state_dict().values()} == {torch.bfloat16}
    assert model.generate(tokens, max_new_tokens=5, min_new_tokens=5).shape == (1, 25)


def test_save_pretrained_keeps_the_format(saved: Path, tmp_path: Path, logits: Forward) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    model.save_pretrained(tmp_path / "resaved")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "resaved")), logits(model))


def test_saving_twice_writes_the_same_bytes_whatever_the_tokenizer_did_between(
    tiny: Build, compress: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = compress(tiny())
    save(model, words, tmp_path / "saved", max_shard_size="12KB")
    first = digests(tmp_path / "saved")
    words("w1 w2 w3", truncation=True, max_length=2)
    save(model, words, tmp_path / "saved", max_shard_size="12KB")
    assert digests(tmp_path / "saved") == first


def test_a_checkpoint_holds_no_path(saved: Path, tmp_path: Path) -> None:
    save(*load(saved, device="cpu"), tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_saving_over_shards_leaves_no_shard_behind(saved: Path) -> None:
    model, tokenizer = load(saved, device="cpu")
    save(model, tokenizer, saved, max_shard_size="12KB")
    save(model, tokenizer, saved)
    assert [path.name for path in saved.glob("model*")] == ["model.safetensors"]


def test_contradictory_generation_settings_pass_through(
    tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny()
    model.generation_config = GenerationConfig(temperature=0.9, do_sample=False)
    save(model, words, tmp_path / "saved")
    assert load(tmp_path / "saved", device="cpu")[0].generation_config.temperature == 0.9


def test_a_dense_model_is_saved_without_a_word_of_mgaa(
    tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save(tiny(), words, tmp_path / "saved")
    assert b"mgaa" not in (tmp_path / "saved/config.json").read_bytes()


def test_the_config_records_each_rank_and_bias(saved: Path) -> None:
    modules = json.loads((saved / "config.json").read_text())["quantization_config"]["modules"]
    assert len(modules) == 2 * 7
    assert modules[QUERY] == {"rank": 16, "bias": True}


def test_a_loaded_model_evaluates_and_asks_for_no_gradient(saved: Path) -> None:
    model, _ = load(saved, device="cpu")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3_moe"])
def test_a_second_model_with_factors_shares_the_rest_and_leaves_the_first_as_it_is(
    family: str, tiny: Build, compress: Build, logits: Forward
) -> None:
    model = unfuse_(tiny(family, tie_word_embeddings=True))
    before, state, config = logits(model), dict(model.state_dict()), model.config.to_dict()
    layers = low_rank_layers(compress(copy.deepcopy(model)))
    factors = {name: Factors(layer.A.weight, layer.B.weight, layer.B.bias) for name, layer in layers.items()}
    twin = twin_of(model)
    apply_factors(twin, factors)
    assert low_rank_layers(twin).keys() == factors.keys()
    places = {name: tensor.data_ptr() for name, tensor in twin.state_dict().items()}
    own = {name for name, place in places.items() if name not in state or place != state[name].data_ptr()}
    assert own == {f"{name}.{part}" for name in factors for part in ("A.weight", "B.weight", "B.bias", "weight")}
    assert torch.equal(logits(twin), logits(apply_in_place(copy.deepcopy(model), factors)))
    assert not torch.equal(logits(twin), before)
    assert torch.equal(logits(model), before)
    assert low_rank_layers(model) == {}
    assert model.config.to_dict() == config


def apply_in_place(model: PreTrainedModel, factors: dict[str, Factors]) -> PreTrainedModel:
    apply_factors(model, factors)
    return model


def test_factors_that_overflow_the_dtype_are_refused(tiny: Build) -> None:
    model = tiny().half()
    pair = Factors(torch.full((2, 32), 1e6), torch.ones(32, 2))
    with pytest.raises(NumericalError, match=rf"factor A of {QUERY} has 64 non-finite entries in torch.float16: set"):
        apply_factors(model, {QUERY: pair})
    assert not low_rank_layers(model)


@pytest.mark.parametrize(
    ("name", "a", "b", "said"),
    [
        ("model.layers.9.self_attn.q_proj", (2, 32), (32, 2), "has nothing: expected an nn.Linear"),
        ("model.layers.0", (2, 32), (32, 2), "has LlamaDecoderLayer: expected an nn.Linear"),
        (QUERY, (2, 32), (48, 2), "make a 48 x 32 matrix, the layer has 32 x 32"),
    ],
)
def test_factors_without_their_place_are_refused(
    name: str, a: tuple[int, int], b: tuple[int, int], said: str, tiny: Build
) -> None:
    with pytest.raises(UsageError, match=said):
        apply_factors(tiny(), {name: Factors(torch.ones(a), torch.ones(b))})


def test_a_folder_that_cannot_be_written_is_reported(
    tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot be written to .*file"):
        save(tiny(), words, tmp_path / "file")


def test_a_full_disk_is_reported(tiny: Build, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(ResourceError, match=r"cannot be written to .*File too large.*: make room or give a folder"):
            save(tiny(), words, tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"version": 2}, "version 2 .* install the mgaa that wrote the checkpoint"),
        ({"sparsity": 0.5}, r"further keys \['sparsity'\]"),
        ({"modules": [QUERY]}, r"has the modules \['model.layers.*expected a rank and a bias for each name"),
        ({"modules": {QUERY: {"rank": 33, "bias": True}}}, f"{QUERY} the rank 33, expected 1 to 32"),
        ({"modules": {QUERY: {"bias": True}}}, f"{QUERY} the rank None"),
        ({"modules": {"model.norm": {"rank": 4, "bias": True}}}, "'model.norm', which is not a linear of Llama"),
        ({"modules": {QUERY: {"rank": 4, "bias": True}}}, "of another shape model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_an_edited_record_of_ranks_is_refused(edit: dict[str, object], said: str, saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"] |= edit
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said):
        load(saved, device="cpu")


@pytest.mark.slow
def test_a_new_process_computes_the_same_logits(
    tiny: Build, compress: Build, logits: Forward, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    script = """if True:
        import sys, torch, mgaa
        from pathlib import Path
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM
        folder, names = Path(sys.argv[1]), sys.argv[2:]
        tokens = torch.arange(40).reshape(2, 20) * 7 % 60
        with torch.no_grad():
            models = {path: AutoModelForCausalLM.from_pretrained(folder / path) for path in names}
            save_file({path: model(tokens).logits for path, model in models.items()}, folder / "logits.safetensors")
    """
    expected = {}
    for family, dtype in (("llama", torch.float32), ("qwen3", torch.bfloat16)):
        tiny(family).to(dtype).save_pretrained(tmp_path / "dense")
        words.save_pretrained(tmp_path / "dense")
        backbone, tokenizer = load(tmp_path / "dense", device="cpu")
        save(compress(backbone), tokenizer, tmp_path / family, max_shard_size="12KB")
        expected[family] = logits(backbone)
    subprocess.run([sys.executable, "-c", script, tmp_path, *expected], cwd=ROOT, check=True, capture_output=True)
    found = load_file(tmp_path / "logits.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
