"""An allocation that was saved is the same when it is loaded: on the model itself, and on another one of the same shape."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from mgaa.allocation import file
from mgaa.errors import InputError, ResourceError, UsageError
from mgaa.methods import available_methods
from mgaa.models.architectures import matrices_of
from tests.support.allocations import reads_file

Tiny = Callable[..., PreTrainedModel]
FOUND_BY = [
    (ratios, ranks)
    for ratios in available_methods("ratios")
    for ranks in available_methods("ranks")
    if not reads_file("ratios", ratios) and not reads_file("ranks", ranks)
]
UNREADABLE = torch.full((1, 4), 10**6)
"""Tokens that the calibration would refuse with another error, so that what is refused before it is seen to be."""


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(tiny: Tiny, tokens: Tensor, tmp_path: Path) -> Path:
    """The allocation that the defaults find on the base model for compression 0.3."""
    mgaa.compress_(tiny(), tokens, compression=0.3).save(tmp_path / "allocation.json")
    return tmp_path / "allocation.json"


def chat(tiny: Tiny, **settings: object) -> PreTrainedModel:
    """A model of the base model's shape with other weights."""
    model = tiny(**settings)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def from_file(path: Path, **options: Any) -> dict[str, Any]:
    return {"method": "file", "path": path, **options}


# --- there and back


@pytest.mark.parametrize(
    ("ratios", "ranks", "factors"), [*((*levels, "afm") for levels in FOUND_BY), (*FOUND_BY[0], "svd")]
)
def test_ranks_of_a_base_model_are_those_of_its_chat_model(
    tiny: Tiny, tokens: Tensor, tmp_path: Path, factors: str, ratios: str, ranks: str
) -> None:
    settings: dict[str, Any] = {"compression": 0.3, "factors": factors}
    base = mgaa.compress_(tiny(), tokens, ratios=ratios, ranks=ranks, **settings)
    base.save(tmp_path / "base.json")
    model = chat(tiny)
    found = mgaa.compress_(model, tokens, ranks=from_file(tmp_path / "base.json"), **settings)
    assert [(x.name, x.rank, x.parameters) for x in found.matrices] == [
        (x.name, x.rank, x.parameters) for x in base.matrices
    ]
    assert [x.energy for x in found.matrices] != [x.energy for x in base.matrices]  # measured on the other model
    for x in found.matrices:
        layer = model.get_submodule(x.name)
        assert (layer.rank if isinstance(layer, mgaa.LowRankLinear) else None) == x.rank


@pytest.mark.parametrize("ratios", available_methods("ratios"))
def test_ratios_of_a_base_model_are_those_of_its_chat_model_whatever_its_cosines(
    tiny: Tiny, tokens: Tensor, path: Path, ratios: str
) -> None:
    method = from_file(path) if reads_file("ratios", ratios) else {"method": ratios}
    base = mgaa.compress_(tiny(), tokens, compression=0.3, ratios=method)
    base.save(path)
    found = mgaa.compress_(chat(tiny), tokens, compression=0.3, ratios=from_file(path))
    assert [(x.name, x.ratio) for x in found.sublayers] == [(x.name, x.ratio) for x in base.sublayers]
    assert [x.cosine for x in found.sublayers] != [x.cosine for x in base.sublayers]


def test_an_allocation_that_was_loaded_is_saved_as_the_same_allocation(tiny: Tiny, tokens: Tensor, path: Path) -> None:
    """With the ratios that belong to the ranks, though nobody asked for them."""
    before = file.load_allocation(path)
    mgaa.compress_(chat(tiny), tokens, compression=0.3, ranks=from_file(path)).save(path)
    assert file.load_allocation(path) == before


def test_the_file_is_laid_out_as_the_results_of_a_run(tiny: Tiny, tokens: Tensor, path: Path) -> None:
    report = mgaa.compress_(tiny(), tokens, compression=0.3)
    content = json.loads(path.read_text())
    assert list(content) == ["compression", "budget", "linear_parameters", "slack", "sublayers", "matrices"]
    assert content["budget"] - content["slack"] == content["linear_parameters"] == report.linear_parameters
    assert content["sublayers"]["1.ffn"].keys() == {"cosine", "ratio", "reached"}
    name = "model.layers.0.self_attn.k_proj"
    assert content["matrices"][name].keys() == {"m", "n", "rank", "parameters", "energy", "error"}
    assert (content["matrices"][name]["m"], content["matrices"][name]["n"]) == (16, 32)


def test_of_several_models_the_last_is_taken_or_the_one_that_is_named(path: Path) -> None:
    last = json.loads(path.read_text())
    other = last | {"sublayers": {name: {"ratio": 0} for name in last["sublayers"]}}
    path.write_text(json.dumps({"uniform": other, "mgaa": last}))
    assert set(file.load_allocation(path, "uniform").ratios.values()) == {0.0}
    assert file.load_allocation(path) == file.load_allocation(path, "mgaa")
    with pytest.raises(UsageError, match=r"model is 'level1', expected one of those in .*: uniform, mgaa$"):
        file.load_allocation(path, "level1")


def test_a_name_means_nothing_in_a_file_with_one_allocation(path: Path) -> None:
    with pytest.raises(UsageError, match=r"model is 'mgaa', but .* holds one allocation without a name: leave"):
        file.load_allocation(path, "mgaa")


# --- files that are none


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda entry: entry.pop("budget"),
            r"^budget of .*allocation\.json is null, expected a whole number: give what",
        ),
        (lambda entry: entry.update(budget="800"), r'^budget of .* is "800", expected a whole number'),
        (lambda entry: entry.update(budget=1.5), r"^budget of .* is 1\.5, expected a whole number"),
        (lambda entry: entry.update(matrices=[]), r"^matrices of .* is \[\], expected an object"),
        (lambda entry: entry.pop("sublayers"), r"^sublayers of .* is null, expected an object"),
        (lambda entry: entry["sublayers"].update(x=0.2), r"^ratio of x of .* is null, expected a finite number"),
        (
            lambda entry: entry["sublayers"]["0.ffn"].update(ratio=True),
            r"^ratio of 0\.ffn of .* is true, expected a fin",
        ),
        (
            lambda entry: entry["sublayers"]["0.ffn"].update(ratio=float("nan")),
            r"^ratio of 0\.ffn of .* is NaN, expect",
        ),
        (
            lambda entry: entry["matrices"].update(x={"m": 2, "n": 2}),
            r"^rank of x of .* is null, expected a whole number",
        ),
        (
            lambda entry: entry["matrices"].update(x={"m": 2, "n": 2, "rank": 1.0}),
            r"^rank of x of .* is 1\.0, expected",
        ),
        (lambda entry: entry["matrices"].update(x={"m": True, "n": 2, "rank": 1}), r"^m of x of .* is true, expected"),
        (lambda entry: entry["matrices"].update(x=None), r"^m of x of .* is null, expected a whole number"),
    ],
)
def test_a_value_of_another_kind_is_named(path: Path, change: Callable[[Any], object], message: str) -> None:
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))
    with pytest.raises(InputError, match=message):
        file.load_allocation(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not JSON \(Expecting value"),
        (b'{"budget": 1,', r"is not JSON \(Expecting property name"),
        (b"\xff\xfe", r"is not JSON \('utf-8' codec"),
        (b"[" * 100_000, r"is not JSON \(maximum recursion depth"),
        (b"[]", r"holds no model: give what `Report\.save` wrote, or `results/allocation\.json` of a run"),
        (b"{}", r"holds no model: give what"),
        (b'{"mgaa": 1}', r"sublayers of mgaa in .* is null, expected an object"),
    ],
)
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json " + message if not content.startswith(b'{"m') else message):
        file.load_allocation(tmp_path / "x.json")


def test_what_cannot_be_read_or_written_is_told(tmp_path: Path, tiny: Tiny, tokens: Tensor) -> None:
    with pytest.raises(InputError, match=r"none\.json cannot be read \(No such file or directory\): give what"):
        file.load_allocation(tmp_path / "none.json")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\): give what"):
        file.load_allocation(tmp_path)
    with pytest.raises(
        ResourceError, match=r"cannot be written to .*nowhere.*\(No such file or directory\): make room"
    ):
        file.save_allocation({}, tmp_path / "nowhere" / "x.json")


# --- files that do not fit, told before anything is measured


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 1}, r"for another model: model\.layers\.1\.\S+ is in the file alone"),
        ({"num_hidden_layers": 3}, r"for another model: model\.layers\.2\.\S+ is 32 x 32 here and missing in the file"),
        ({"intermediate_size": 40}, r"for another model: \S+gate_proj is 40 x 32 here and 48 x 32 in the file"),
        ({"num_key_value_heads": 4}, r"for another model: \S+k_proj is 32 x 32 here and 16 x 32 in the file"),
    ],
)
def test_a_file_for_another_model_costs_no_calibration(
    tiny: Tiny, path: Path, settings: dict[str, Any], message: str
) -> None:
    ratios = from_file(path) | {"path": rescaled(path, tiny(**settings))}
    with pytest.raises(UsageError, match=message):
        mgaa.compress_(tiny(**settings), UNREADABLE, compression=0.3, ratios=ratios, ranks=from_file(path))


def rescaled(path: Path, model: PreTrainedModel) -> Path:
    """The file with the sublayers of another model, so that its ratios fit and its ranks do not."""
    sublayers = {matrix.sublayer: {"ratio": 0.3} for matrix in matrices_of(model)}
    other = path.with_name("ratios.json")
    other.write_text(json.dumps(json.loads(path.read_text()) | {"sublayers": sublayers}))
    return other


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("ratios", {}, r"the ratios in .* are for compression 0\.3, but ratios\.compression is 0\.2: set it"),
        ("ranks", {}, r"the ratios in .* are for compression 0\.3, but ratios\.compression is 0\.2: set it"),
        ("ratios", {"compression": 0.3, "band": 0.001}, r"ratio \S+ of sublayer \S+ in .* is outside 0\.299 to 0\.301"),
        (
            "ranks",
            {"compression": 0.3, "multiple": 5},
            r"rank \d+ of \S+ in .* is not on its ladder: .* a multiple of 5",
        ),
        (
            "ranks",
            {"compression": 0.3, "model": "mgaa"},
            r"model is 'mgaa', but .* holds one allocation without a name",
        ),
        ("ranks", {"compression": 0.3, "mdel": "mgaa"}, r"ranks\.mdel is not an option .* takes path, model"),
    ],
)
def test_a_file_that_does_not_fit_costs_no_calibration(
    tiny: Tiny, path: Path, section: str, settings: dict[str, Any], message: str
) -> None:
    options = dict(settings)
    compression = options.pop("compression", 0.2)
    with pytest.raises(UsageError, match=message):
        mgaa.compress_(tiny(), UNREADABLE, compression=compression, **{section: from_file(path, **options)})  # type: ignore[arg-type]


def test_ranks_that_were_found_without_biases_do_not_pay_for_them(tiny: Tiny, tokens: Tensor, path: Path) -> None:
    mgaa.compress_(tiny(), tokens, compression=0.3, factors="svd").save(path)
    with pytest.raises(UsageError, match=r"the ranks in .* cost [\d,]+ linear parameters here, more than"):
        mgaa.compress_(tiny(), UNREADABLE, compression=0.3, factors="afm", ranks=from_file(path))


@pytest.mark.parametrize("ratios", ["softmax", {"method": "linear", "band": 0.1}])
def test_ratios_that_would_have_no_effect_are_refused(tiny: Tiny, path: Path, ratios: Any) -> None:
    with pytest.raises(UsageError, match=r"ratios is .*, which has no effect on ranks that are read from a file"):
        mgaa.compress_(tiny(), UNREADABLE, compression=0.3, ratios=ratios, ranks=from_file(path))


def test_the_path_is_needed(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match=r"ranks\.path is missing: the method 'file' needs it; it takes path, model"):
        mgaa.compress_(tiny(), UNREADABLE, ranks="file")
