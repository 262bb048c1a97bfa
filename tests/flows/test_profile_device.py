"""From the clock to the checkpoint: a device is profiled without the weights of the model, and a run allocates by what the file says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.profile_device import profile_device, show
from flows.search import search
from flows.sensitivity import sensitivity
from flows.show import show as screen
from mgaa.allocation.latency import Profile, load_profile, shape_of
from mgaa.budget import Matrix
from tasks.cache.stage import split_arguments
from tasks.config import parameters
from tasks.planning.recipes import recipes
from tests.support.laboratory import Outcome, TinyProject, change
from tests.support.profiles import made

pytestmark = pytest.mark.slow

QUICK = ("profile.repetitions=2", "profile.ranks=3", "profile.tokens=[1,5]", "profile.threads=1")
PLAIN = ("evaluation.tasks=[]",)
ALONE = ("evaluation.baselines=[]", "data.validation.samples=8", "data.evaluation.samples=8")


def matrices(lab: TinyProject) -> list[Matrix]:
    """Of the backbone, as the first run has recorded them."""
    (path,) = lab.artifacts("backbone")
    return [Matrix(**each) for each in json.loads((path / "backbone.json").read_text())["matrices"]]


def steep(lab: TinyProject, **options: Any) -> Profile:
    """A device on which low rank pays below half of the parameters, and never for v."""

    def rule(matrix: Matrix, rank: int | None, tokens: int) -> float:
        if rank is None:
            return 1.0
        return 2.0 * matrix.cost(rank, centred=False) / matrix.parameters if matrix.role != "v" else 2.0

    return made(matrices(lab), rule, count=64, **options)


@pytest.fixture
def profiled(done: TinyProject, tmp_path: Path) -> tuple[TinyProject, Path]:
    steep(done, tokens=(1, 5)).save(tmp_path / "latency.json")
    return done, tmp_path / "latency.json"


def by_latency(path: Path, *more: str) -> tuple[str, ...]:
    return "ranks.objective=latency", f"ranks.profile={path}", *PLAIN, *more


def test_the_command_measures_the_shapes_of_the_model_and_reads_none_of_its_weights(
    empty: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = empty.copy(tmp_path / "lab", store=False)
    model = lab.copy_model(tmp_path / "model")
    change(model, "model.layers.0.mlp.up_proj.weight", lambda weight: weight.fill_(float("nan")))
    given = (*QUICK, f"backbone.source={model}")
    assert lab.run(*given, flow=profile_device) == Outcome(0, "", {})
    assert not (lab.root / "store").exists()
    path = lab.root / "results" / "latency.json"
    profile = load_profile(path)
    assert {*profile.curves} == {(48, 48, False), (24, 48, False), (96, 48, False), (48, 96, False)}
    assert (profile.device, profile.dtype, profile.threads, profile.tokens) == ("cpu", "float32", 1, (1, 5))
    assert profile.centred  # as afm adds biases
    show(parameters.load_parameters(lab.root / "params.yaml", given))
    told = capsys.readouterr().out
    assert "96 x 48, 5 tokens: dense" in told
    assert str(path) in told
    assert lab.run(*given, "factors.method=svd", "profile.output=other.json", flow=profile_device).code == 0
    assert not load_profile(lab.root / "other.json").centred


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("profile.tokens=[]", "profile.tokens is "),
        ("profile.tokens=[1,1]", "tokens.1 is tokens.0 again"),
        ("profile.repetitions=1", "profile.repetitions is 1"),
        ("backbone.source=nowhere/model", "nowhere/model is not a local folder"),
        ("backbone.device=cuda:99", "backbone.device is 'cuda:99', but torch sees"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(empty: TinyProject, override: str, message: str) -> None:
    outcome = empty.run(override, flow=profile_device)
    assert outcome.code in (2, 3)
    assert re.search(message, outcome.message)


@pytest.mark.parametrize("inputs", ["dense", "compressed"])
def test_a_run_keeps_dense_what_would_be_slower_and_predicts_its_time(
    profiled: tuple[TinyProject, Path], inputs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lab, path = profiled
    outcome = lab.run(*by_latency(path, f"statistics.inputs={inputs}", *ALONE))
    assert (outcome.code, outcome.message) == (0, "")
    found = json.loads((lab.root / "results" / "allocation.json").read_text())["mgaa"]
    assert found["linear_parameters"] <= found["budget"]
    sums = dict.fromkeys(("1", "5"), 0.0)
    profile = load_profile(path)
    shapes = {matrix.name: shape_of(matrix) for matrix in matrices(lab)}
    for name, each in found["matrices"].items():
        assert each["rank"] is None or 2 * each["rank"] * (each["m"] + each["n"]) < each["m"] * each["n"]
        assert each["rank"] is None or not name.endswith("v_proj")
        for tokens in sums:
            curve = profile.curves[shapes[name]][int(tokens)]
            assert each["predicted_seconds"][tokens] == {"dense": curve.at(None), "compressed": curve.at(each["rank"])}
            sums[tokens] += curve.at(each["rank"])
    assert any(each["rank"] is not None for each in found["matrices"].values())
    predicted = found["latency"]["predicted_seconds"]
    assert {tokens: seconds["compressed"] for tokens, seconds in predicted.items()} == pytest.approx(sums)
    checkpoint = json.loads((lab.root / "models" / "compressed" / "config.json").read_text())
    ranks = {name: each["rank"] for name, each in checkpoint["quantization_config"]["modules"].items()}
    assert ranks == {name: each["rank"] for name, each in found["matrices"].items() if each["rank"] is not None}
    screen(parameters.load_parameters(lab.root / "params.yaml"))
    shares = ", ".join(f"{sums[tokens] / len(shapes):.2f} at {tokens}" for tokens in sums)
    assert (
        f"Predicted time of MGAA's linears over dense on a device, by tokens per call: {shares}."
        in capsys.readouterr().out
    )
    if inputs == "dense":
        moved = path.rename(path.with_name("moved.json"))
        assert lab.run(*by_latency(moved, *ALONE)) == Outcome(0, "", {})


def test_the_stage_keys_hold_the_content_of_the_profile_and_not_its_path(empty: TinyProject, tmp_path: Path) -> None:
    def keyed(path: Path) -> list[Any]:
        (recipe,) = recipes(parameters.load_parameters(empty.root / "params.yaml", by_latency(path, *ALONE))).values()
        return [split_arguments("allocate_ranks", {"target": recipe.target})[1]]

    one, same, other = (tmp_path / name for name in ("one.json", "same.json", "other.json"))
    one.write_text("a profile")
    same.write_text("a profile")
    other.write_text("another")
    assert keyed(one) == keyed(same)
    assert all(a != b for a, b in zip(keyed(one), keyed(other), strict=True))


REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no profile": (
        ("ranks.profile=null",),
        2,
        "ranks.profile is None, but with ranks.objective=latency .*flows.profile_device",
    ),
    "nowhere": (("ranks.profile=nowhere.json",), 3, "the profile nowhere.json cannot be read"),
    "dtype": (("backbone.dtype=bfloat16",), 2, "was measured in float32, but the weights are bfloat16"),
    "device": (("ranks.device=cuda",), 2, "ranks.device is 'cuda'"),
    "tokens": (("ranks.tokens=2",), 2, "ranks.tokens is 2"),
    "compression": (("ratios.compression=0.95", "ratios.band=null"), 2, "out of reach.*ranks.objective=parameters"),
    "pruning": (
        ("channels.method=weighted",),
        2,
        "with channels.method=weighted .*: set channels.method=none",
    ),
    "search": (
        ("method=bolaco",),
        2,
        "with search.method=gp only parameters are counted: set ranks.objective=parameters",
    ),
    "recovery": (("recovery.method=lora",), 2, "recovery.tune is 'product'.*set recovery.tune=factors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_before_the_calibration(
    profiled: tuple[TinyProject, Path], case: str
) -> None:
    lab, path = profiled
    overrides, code, message = REFUSED[case]
    outcome = lab.run(*by_latency(path, *overrides))
    assert (outcome.code, outcome.executed.keys() - {"load_backbone"}) == (code, set())
    assert re.search(message, outcome.message)


def test_flows_that_look_at_parameters_alone_refuse_the_objective(profiled: tuple[TinyProject, Path]) -> None:
    lab, path = profiled
    for flow, more in ((search, ("method=bolaco",)), (sensitivity, ())):
        outcome = lab.run(*by_latency(path, *more), flow=flow)
        assert (outcome.code, outcome.executed) == (2, {})
        assert "set ranks.objective=parameters" in outcome.message


def test_the_parameters_of_the_repository_name_every_key_of_a_profile(empty: TinyProject) -> None:
    given = yaml.safe_load((empty.root / "params.yaml").read_text())
    assert {"objective", "profile", "tokens", "device"} <= given["ranks"].keys()
    assert given["profile"]["output"] == "results/latency.json"
