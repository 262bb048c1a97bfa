"""A folder is loaded whole or refused with its reason: each damage reaches its message, and none reaches a random weight."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mgaa.checkpoints.folder import backbone_files
from mgaa.checkpoints.save import load
from mgaa.errors import InputError, NumericalError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"


@pytest.fixture
def folder(tiny: Callable[..., PreTrainedModel], words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A sound dense checkpoint of one file."""
    tiny().save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tiny: Callable[..., PreTrainedModel], words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A sound dense checkpoint of several files and an index."""
    tiny().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    words.save_pretrained(tmp_path / "sharded")
    return tmp_path / "sharded"


def edit(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (without_config, "has no config.json: expected the folder of a transformers model"),
    "truncated config": (lambda f: truncate(f / "config.json"), "config.json is not valid JSON"),
    "config of a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list, expected an object"),
    "config of nothing": (lambda f: (f / "config.json").write_text("{}"), "has no model_type"),
    "unknown architecture": (lambda f: edit(f / "config.json", model_type="nonesuch"), "cannot read .*nonesuch"),
    "ill-typed config": (lambda f: edit(f / "config.json", hidden_size="wide"), "cannot read .*hidden_size"),
    "remote code": (lambda f: edit(f / "config.json", auto_map={"AutoModel": "x.Y"}), "custom code .auto_map"),
    "a kernel of the Hub": (
        lambda f: edit(f / "config.json", attn_implementation="owner/name"),
        "requests a compiled kernel of the Hub .'owner/name'",
    ),
    "a kernel of the Hub, nested": (
        lambda f: edit(f / "config.json", text_config={"_attn_implementation": "owner/name@v1:forward"}),
        "requests a compiled kernel of the Hub",
    ),
    "remote tokenizer code": (lambda f: edit(f / "tokenizer_config.json", auto_map={}), "tokenizer_config.*auto_map"),
    "quantised": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"is quantised \(gptq\): start from the unquantised model",
    ),
    "other weights": (lambda f: edit(f / "config.json", transformers_weights="x.safetensors"), "rename them to model"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter: merge it"),
    "generation settings of a list": (
        lambda f: (f / "generation_config.json").write_text("[]"),
        "generation_config.json holds a list",
    ),
    "nonsensical config": (lambda f: edit(f / "config.json", num_attention_heads=0), "cannot read .*ZeroDivision"),
    "unknown activation": (lambda f: edit(f / "config.json", hidden_act="nope"), "does not load .*nope"),
    "no language model": (lambda f: edit(f / "config.json", model_type="vit"), "not load as a causal language model"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has neither model.safetensors nor .*expected safetensors"),
    "pickle": (pickled, "pytorch_model.bin is a pickle, which can run code when it is opened; convert it"),
    "truncated weights": (lambda f: truncate(f / WEIGHTS), "not a complete safetensors file .*fetch it again"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "not a complete safetensors file"),
    "oversized header": (
        lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 7 + b"\x7f" + b"{}"),
        "not a complete safetensors file",
    ),
    "Git LFS pointer": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "not a complete safetensors file .*git lfs pull",
    ),
    "missing tensor": (lambda f: rewrite(f / WEIGHTS, lambda t: t.pop(NORM)), f"missing {NORM}. The checkpoint"),
    "further tensors": (
        lambda f: rewrite(f / WEIGHTS, lambda t: t.update({f"x{i}": torch.ones(1) for i in range(5)})),
        "unexpected x0, x1, x2 and 2 more",
    ),
    "tensor of another shape": (
        lambda f: rewrite(f / WEIGHTS, lambda t: t.update({NORM: torch.ones(7)})),
        f"of another shape {NORM}",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer .*copy the model's own there"),
    "truncated tokenizer": (lambda f: truncate(f / "tokenizer.json"), "tokenizer.json is not valid JSON"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_its_reason(damage: str, folder: Path) -> None:
    inflict, said = DAMAGES[damage]
    inflict(folder)
    with pytest.raises(InputError, match=f"(?s){said}"):
        load(folder, device="cpu")


def shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def elsewhere(folder: Path, name: str) -> None:
    """Let the index point at the second shard under another name."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {t: name if n == shard(folder).name else n for t, n in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))


def moved_out(folder: Path) -> Path:
    return shard(folder).rename(folder.parent / "outside.safetensors")


def traversed(folder: Path) -> None:
    elsewhere(folder, "../outside.safetensors")
    moved_out(folder)


def linked_out(folder: Path) -> None:
    path = shard(folder)
    path.symlink_to(moved_out(folder))


SHARD_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard missing": (lambda f: shard(f).unlink(), "lacks the file model-00002-of-.*: fetch it"),
    "shard truncated": (lambda f: truncate(shard(f)), "model-00002-of-.*not a complete safetensors file"),
    "index truncated": (lambda f: truncate(f / INDEX), "index.json is not valid JSON"),
    "index without a map": (lambda f: edit(f / INDEX, weight_map=None), "has no weight_map"),
    "index without metadata": (lambda f: edit(f / INDEX, metadata=None), "has no metadata"),
    "path traversal": (
        traversed,
        "weights from '../outside.safetensors', outside the folder",
    ),
    "absolute path": (lambda f: elsewhere(f, "/etc/hostname"), "weights from '/etc/hostname', outside the folder"),
    "zero byte in a name": (lambda f: elsewhere(f, "a\0b"), r"weights from 'a\\x00b' \(.*fetch .*index.json again"),
    "endless name": (lambda f: elsewhere(f, "9" * 5000), r"weights from '9{80}' \(.*too long.*fetch"),
    "half a character in a name": (lambda f: elsewhere(f, "\ud800"), r"weights from '\\ud800' \(.*fetch"),
    "link leaving the folder": (linked_out, "weights from 'model-00002-of-.*outside the folder: copy the file"),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGES)
def test_damaged_shards_are_refused_with_their_reason(damage: str, sharded: Path) -> None:
    inflict, said = SHARD_DAMAGES[damage]
    inflict(sharded)
    with pytest.raises(InputError, match=said):
        load(sharded, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_counted(value: float, folder: Path) -> None:
    rewrite(folder / WEIGHTS, lambda tensors: tensors[NORM][:3].fill_(value))
    with pytest.raises(NumericalError, match=f"{NORM} in .* has 3 non-finite entries of 32 in torch.float32"):
        load(folder, device="cpu")


def test_weights_that_overflow_the_dtype_asked_for_are_counted(folder: Path) -> None:
    rewrite(folder / WEIGHTS, lambda tensors: tensors[NORM][:3].fill_(1e6))
    with pytest.raises(NumericalError, match=f"{NORM} .* 3 non-finite .* in torch.float16: .*backbone.dtype: bfloat16"):
        load(folder, dtype="float16", device="cpu")


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(folder: Path, words: PreTrainedTokenizerFast) -> None:
    words.add_tokens([f"new{i}" for i in range(5)])
    words.save_pretrained(folder)
    with pytest.raises(InputError, match="has ids up to 67, the embedding has 64 rows: use the tokenizer"):
        load(folder, device="cpu")


@pytest.mark.parametrize("source", ["nowhere/at/all", "/nowhere", "./nowhere", Path("nowhere")])
def test_a_missing_folder_is_refused(source: str | Path) -> None:
    with pytest.raises(InputError, match=f"no model folder at {source}: expected a folder with config.json"):
        load(source)


def test_a_missing_neighbour_of_existing_folders_is_no_hub_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    with pytest.raises(InputError, match=r"no model folder at .*/modle"):
        load(f"{folder.parent.name}/modle")


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12]])
def test_a_hub_model_without_a_commit_is_refused(revision: str | None) -> None:
    with pytest.raises(UsageError, match=r"organisation/name .*expected a commit \(40 hexadecimal digits"):
        load("organisation/name", revision=revision)


def test_a_revision_of_a_local_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="only Hub models have revisions; set it to null"):
        load(folder, revision=COMMIT)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dtype": "int8"}, "dtype 'int8': expected one of auto, float32"),
        ({"device": "toaster"}, "device 'toaster': expected auto, cpu"),
        ({"device": "cuda:99"}, "device 'cuda:99': torch sees .* use auto or cpu"),
    ],
)
def test_an_unknown_dtype_or_device_is_refused(arguments: dict[str, str], said: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=said):
        load(folder, **arguments)


def test_the_files_of_a_backbone_are_config_tokenizer_and_weights(folder: Path, sharded: Path) -> None:
    (folder / "README.md").touch()
    (folder / "training_args.bin").touch()
    names = [path.name for path in backbone_files(folder)]
    assert names == ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"]
    assert {INDEX, shard(sharded).name} < {path.name for path in backbone_files(sharded)}


@pytest.fixture
def cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the Hub's cache keeps a download: links into `blobs`; and no network."""
    entry = tmp_path / "cache/models--organisation--name"
    shutil.move(folder, entry / "blobs")
    snapshot = entry / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for blob in (entry / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(f"../../blobs/{blob.name}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_cached_hub_model_loads_at_its_commit_without_a_network(cache: Path) -> None:
    model, _ = load("organisation/name", revision=COMMIT, device="cpu")
    assert model.config.hidden_size == 32
    assert cache / WEIGHTS in backbone_files("organisation/name", COMMIT)
    load(cache, device="cpu")


def test_a_hub_model_that_is_not_cached_is_refused_offline(cache: Path) -> None:
    with pytest.raises(InputError, match=r"the Hub does not provide organisation/other at 0123.*unset HF_HUB_OFFLINE"):
        load("organisation/other", revision=COMMIT)
