"""Under the objective latency no rank is slower than dense by its profile, the budget holds, and what does not fit is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from mgaa.allocation.channels import Pruning
from mgaa.allocation.latency import Curve, Latency, Profile, Timing, load_latency, load_profile, total_seconds
from mgaa.budget import Ladder, Matrix, parameter_budget
from mgaa.errors import InputError, ResourceError, UsageError
from mgaa.levels import Target, allocate, preflight
from mgaa.models.architectures import matrices_of
from mgaa.ranks import Rank, ladders_of
from tests.support.profiles import Rule, always_slower, by_parameters, made

SIDES = {"q": (64, 64), "v": (32, 64), "up": (96, 64), "down": (64, 96)}


def matrices(blocks: int = 3) -> list[Matrix]:
    """Attention and FFN of a few shapes."""
    return [
        Matrix(f"{block}.{name}", name, block, f"{block}.{'attention' if name in 'qv' else 'ffn'}", m, n, False, name)
        for block in range(blocks)
        for name, (m, n) in SIDES.items()
    ]


def latency(rule: Rule, *, at: tuple[int, ...] | None = None, **options: Any) -> Latency:
    profile = made(matrices(), rule, **options)
    return Latency(profile, at or profile.tokens, "latency.json")


def ladders(faster: Latency | None, *, centred: bool = False, multiple: int = 1) -> list[Ladder]:
    found = matrices()
    energies = {
        x.name: torch.arange(1, min(x.m, x.n) + 1, dtype=torch.float64) ** -(0.5 + 0.1 * i) for i, x in enumerate(found)
    }
    return ladders_of(found, energies, centred=centred, multiple=multiple, latency=faster)


def run(faster: Latency | None, compression: float = 0.3, ranks: str = "energy", **options: Any) -> list[Rank]:
    given = ladders(faster, **options)
    cosines = {name: 0.5 + 0.05 * i for i, name in enumerate(dict.fromkeys(x.matrix.sublayer for x in given))}
    target = Target(compression, options.get("multiple", 1), latency=faster)
    return allocate(given, cosines, target, ("softmax", {"temperature": 0.3}), (ranks, {}))[1]


def kept(outcome: list[Rank]) -> dict[str, int | None]:
    return {each.matrix.name: each.rank for each in outcome}


# --- the time at a rank


@given(
    ranks=st.lists(st.integers(1, 500), min_size=1, max_size=8, unique=True).map(sorted),
    seconds=st.lists(st.floats(1e-6, 1.0), min_size=8, max_size=8),
    rank=st.integers(1, 600),
)
def test_time_goes_through_what_was_measured_and_stays_between_its_neighbours(
    ranks: list[int], seconds: list[float], rank: int
) -> None:
    curve = Curve(Timing(1.0, 0.0), {r: Timing(s, 0.0) for r, s in zip(ranks, seconds, strict=False)})
    assert [curve.at(r) for r in ranks] == seconds[: len(ranks)]
    below = [s for r, s in zip(ranks, seconds, strict=False) if r <= rank][-1:]
    above = [s for r, s in zip(ranks, seconds, strict=False) if r >= rank][:1]
    assert min(below + above) * (1 - 1e-12) <= curve.at(rank) <= max(below + above) * (1 + 1e-12)
    assert curve.at(None) == 1.0


def test_between_two_measured_ranks_time_is_linear() -> None:
    curve = Curve(Timing(9.0, 0.0), {8: Timing(1.0, 0.0), 16: Timing(3.0, 0.0)})
    assert [curve.at(rank) for rank in (4, 8, 10, 12, 16, 24)] == [1.0, 1.0, 1.5, 2.0, 3.0, 3.0]


# --- the ladder


@given(
    overhead=st.floats(0.0, 2.0),
    slope=st.floats(0.01, 3.0),
    wave=st.floats(0.0, 1.0),
    multiple=st.sampled_from([1, 4]),
    centred=st.booleans(),
)
def test_no_rung_is_slower_than_dense_and_every_rank_that_is_faster_is_one(
    overhead: float, slope: float, wave: float, multiple: int, centred: bool
) -> None:
    def rule(matrix: Matrix, rank: int | None, tokens: int) -> float:
        return 1.0 if rank is None else 1e-3 + overhead + slope * rank / matrix.m + wave * (rank % 3 == 0)

    faster = latency(rule, multiple=multiple)
    whole, short = (ladders(each, centred=centred, multiple=multiple) for each in (None, faster))
    for before, after in zip(whole, short, strict=True):
        curve = faster.profile.curves[before.matrix.m, before.matrix.n, False][1]
        assert after.ranks == tuple(rank for rank in before.ranks if rank is None or curve.at(rank) < curve.at(None))
        assert after.ranks[-1] is None
        assert after.costs == tuple(before.costs[before.ranks.index(rank)] for rank in after.ranks)
        assert after.energies == tuple(before.energies[before.ranks.index(rank)] for rank in after.ranks)


def test_a_rank_has_to_be_faster_at_every_number_of_tokens_that_is_asked_for() -> None:
    def rule(matrix: Matrix, rank: int | None, tokens: int) -> float:
        limit = 10 if tokens == 1 else 20
        return 1.0 if rank is None else 0.5 + 0.5 * rank / limit

    tops = []
    for at in ((1,), (256,), (1, 256)):
        (first, *_) = ladders(latency(rule, tokens=(1, 256), count=64, at=at))
        tops.append(max(rank for rank in first.ranks if rank is not None))
    assert tops == [9, 19, 9]


# --- the allocation


@pytest.mark.parametrize("ranks", ["energy", "uniform", "lorap", "loss"])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("compression", [0.1, 0.3, 0.6])
def test_where_time_is_proportional_to_parameters_the_allocation_is_that_of_parameters(
    ranks: str, multiple: int, compression: float
) -> None:
    faster = latency(by_parameters, multiple=multiple)
    options: dict[str, Any] = {"ranks": ranks, "multiple": multiple}
    assert kept(run(faster, compression, **options)) == kept(run(None, compression, **options))


@pytest.mark.parametrize("ranks", ["energy", "uniform", "lorap", "loss"])
@pytest.mark.parametrize("limit", [0.9, 0.6, 0.5])
def test_the_budget_is_kept_and_no_matrix_is_slower_than_dense(ranks: str, limit: float) -> None:
    def rule(matrix: Matrix, rank: int | None, tokens: int) -> float:
        return 1.0 if rank is None else matrix.cost(rank, centred=False) / matrix.parameters / limit

    faster = latency(rule)
    outcome = run(faster, 0.3, ranks)
    assert sum(each.parameters for each in outcome) <= parameter_budget(matrices(), 0.3)
    for each in outcome:
        (seconds,) = faster.seconds(each.matrix, each.rank).values()
        assert each.rank is None or seconds["compressed"] < seconds["dense"]
        assert each.rank is None or each.parameters < limit * each.matrix.parameters * (1 + 1e-9)


def test_what_no_rank_makes_faster_stays_dense_and_the_others_pay_for_it() -> None:
    def rule(matrix: Matrix, rank: int | None, tokens: int) -> float:
        return (always_slower if matrix.local == "q" else by_parameters)(matrix, rank, tokens)

    outcome = run(latency(rule), 0.3)
    assert all(each.rank is None for each in outcome if each.matrix.local == "q")
    assert sum(each.parameters for each in outcome) <= parameter_budget(matrices(), 0.3)


def test_a_compression_that_only_slower_ranks_reach_is_refused_with_what_can_be_reached_and_the_remedy() -> None:
    chosen: dict[str, Any] = {"factors": ("svd", {}), "ratios": ("uniform", {}), "ranks": ("energy", {})}
    with pytest.raises(UsageError, match=r"largest reachable compression is 0\.0000 .*ranks\.objective=parameters"):
        preflight(matrices(), Target(0.3, 1, latency=latency(always_slower)), **chosen)

    def rule(matrix: Matrix, rank: int | None, tokens: int) -> float:
        return (by_parameters if matrix.local == "q" else always_slower)(matrix, rank, tokens)

    q, everything = 64 * 64, sum(x.parameters for x in matrices(1))
    reach = (q - 128) / everything  # rank 1 of q
    with pytest.raises(UsageError, match=rf"largest reachable compression is {int(1e4 * reach) / 1e4:.4f}"):
        preflight(matrices(), Target(0.3, 1, latency=latency(rule)), **chosen)
    preflight(matrices(), Target(0.99 * reach, 1, latency=latency(rule)), **chosen)


def test_predictions_add_up() -> None:
    faster = latency(by_parameters, tokens=(1, 4))
    found = total_seconds([faster.seconds(each.matrix, each.rank) for each in run(faster, 0.3)])
    dense = sum(x.parameters for x in matrices())
    left = sum(x.parameters for x in run(faster, 0.3))
    for tokens, seconds in found.items():
        assert seconds["dense"] == pytest.approx(int(tokens) * 1e-6 * dense)
        assert seconds["compressed"] == pytest.approx(int(tokens) * 1e-6 * left)


# --- what does not fit is refused


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "steps": (
        {"multiple": 8},
        {"multiple": 4},
        "multiples of 4, but .* at multiples of 8.*set ranks.multiple to a multiple of 8",
    ),
    "biases": ({"centred": False}, {"centred": True}, "adds biases, but latency.json was measured without them"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_profile_of_other_steps_or_without_biases_is_refused(case: str) -> None:
    profile, asked, message = REFUSALS[case]
    with pytest.raises(UsageError, match=message):
        ladders(latency(by_parameters, **profile), **asked)


def test_a_shape_that_was_not_measured_is_named_with_the_command() -> None:
    profile = made([x for x in matrices() if x.local != "up"], by_parameters)
    with pytest.raises(
        InputError, match=r"no times of 96 x 64 without a bias, the shape of 0\.up: .*flows\.profile_device"
    ):
        ladders(Latency(profile, (1,), "latency.json"))


def test_pruned_ffns_have_no_times() -> None:
    with pytest.raises(UsageError, match=r"channels\.method prunes the FFNs.*set channels\.method=none"):
        Target(0.3, 1, Pruning(), latency(by_parameters))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made(matrices(), by_parameters, tokens=(1, 256)).save(tmp_path / "latency.json")
    return tmp_path / "latency.json"


def test_a_profile_is_read_as_it_was_written(path: Path) -> None:
    assert load_profile(path) == made(matrices(), by_parameters, tokens=(1, 256))


CHOICES: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": "bfloat16"}, "was measured in float32, but the weights are bfloat16"),
    "device": ({"device": "cuda"}, r"ranks\.device is 'cuda', but .* was measured on cpu \(a device\)"),
    "tokens": ({"tokens": 8}, r"ranks\.tokens is 8, but .* was measured at 1, 256 tokens per call"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_another_dtype_device_or_number_of_tokens_is_refused(path: Path, case: str) -> None:
    given, message = CHOICES[case]
    with pytest.raises(UsageError, match=message):
        load_latency(path, **{"dtype": "float32"} | given)


def test_a_device_is_known_by_its_kind_and_by_its_name(path: Path) -> None:
    for device in (None, "cpu", "a device"):
        assert load_latency(path, dtype="float32", device=device).tokens == (1, 256)
    assert load_latency(path, dtype="float32", tokens=256).tokens == (256,)


def at(content: Any, *keys: Any) -> Any:
    for key in keys:
        content = content[key]
    return content


DAMAGE: dict[str, tuple[Callable[[Any], object], str]] = {
    "a NaN": (
        lambda c: at(c, "shapes", 0, "times", "1", "dense").update(seconds=float("nan")),
        "seconds of dense at 1 tokens of shape 0 of .* is NaN, expected a finite number",
    ),
    "no time at all": (
        lambda c: at(c, "shapes", 0, "times", "1", "low_rank", 0).update(seconds=0.0),
        "seconds of rank 1 at 1 tokens of shape 0 of .* is 0.0, expected",
    ),
    "a negative spread": (lambda c: at(c, "shapes", 0, "times", "1", "dense").update(spread=-1.0), "spread .* is -1.0"),
    "ranks that fall": (
        lambda c: at(c, "shapes", 0, "times", "1", "low_rank").reverse(),
        "low_rank at 1 tokens of shape 0 of .* is not in ascending order of rank",
    ),
    "no ranks": (
        lambda c: at(c, "shapes", 0, "times", "1").update(low_rank=[]),
        "not in ascending order of rank, or empty",
    ),
    "tokens without times": (
        lambda c: c["tokens"].append(7),
        "7 of 7 tokens of shape 0 of .* is null, expected an object",
    ),
    "no tokens": (lambda c: c.update(tokens=[]), "has no tokens"),
    "no shapes": (lambda c: c.update(shapes=[]), "has no shapes"),
    "a bias that is none": (
        lambda c: at(c, "shapes", 0).update(bias=1),
        "bias of shape 0 of .* is 1, expected true or false",
    ),
    "half a thread": (lambda c: c.update(threads=0.5), "threads of .* is 0.5, expected a positive whole number"),
    "no dtype": (lambda c: c.pop("dtype"), "dtype of .* is null, expected a string"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_profile_is_refused_where_it_is_damaged(path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_profile(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"budget": 1}'])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(InputError, match=r"other\.json.*flows\.profile_device"):
        load_profile(tmp_path / "other.json")


def test_a_file_that_is_not_there_or_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read .*make it by `python -m flows\.profile_device`"):
        load_profile(tmp_path / "nowhere.json")
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        made(matrices(), by_parameters).save(tmp_path / "file" / "latency.json")


# --- in one call


Tiny = Callable[..., PreTrainedModel]
TOKENS = torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(0))


def compressed(model: PreTrainedModel, measured: Profile, folder: Path, **options: Any) -> mgaa.Report:
    measured.save(folder / "latency.json")
    ranks = {"method": "energy", "objective": "latency", "profile": folder / "latency.json", **options}
    return mgaa.compress_(model, TOKENS, compression=0.3, groups=4, ranks=ranks, ratios="uniform")


@pytest.mark.parametrize("inputs", ["dense", "compressed"])
def test_the_report_predicts_what_the_profile_says_of_the_layers_that_the_model_has(
    tiny: Tiny, tmp_path: Path, inputs: str
) -> None:
    def rule(matrix: Matrix, rank: int | None, tokens: int) -> float:
        return 1.0 if rank is None else 0.1 + matrix.cost(rank, centred=False) / matrix.parameters

    model, profile = tiny(), made(matrices_of(tiny()), rule, tokens=(1, 9))
    profile.save(tmp_path / "latency.json")
    ranks = {"method": "energy", "objective": "latency", "profile": str(tmp_path / "latency.json"), "tokens": 9}
    report = mgaa.compress_(model, TOKENS, compression=0.3, groups=4, ranks=ranks, inputs=inputs)
    sums = dict.fromkeys(("1", "9"), 0.0)
    for each in report.matrices:
        m, n = each.shape
        layer = model.get_submodule(each.name)
        rank = layer.rank if isinstance(layer, mgaa.LowRankLinear) else None
        assert rank == each.rank
        assert rank is None or 0.1 + rank * (m + n) / (m * n) < 1 + 1e-9
        assert each.predicted_seconds is not None
        for tokens in sums:
            assert each.predicted_seconds[tokens]["compressed"] == profile.curves[m, n, False][int(tokens)].at(rank)
            sums[tokens] += each.predicted_seconds[tokens]["compressed"]
    assert report.latency is not None
    assert report.latency["faster_at_tokens"] == [9]
    for tokens, seconds in report.latency["predicted_seconds"].items():
        assert seconds == {"dense": pytest.approx(len(report.matrices)), "compressed": pytest.approx(sums[tokens])}
    report.save(tmp_path / "allocation.json")
    saved = json.loads((tmp_path / "allocation.json").read_text())
    assert saved["latency"] == report.latency
    again = {"method": "file", "path": tmp_path / "allocation.json", **{k: ranks[k] for k in ("objective", "profile")}}
    if inputs == "dense":
        assert mgaa.compress_(tiny(), TOKENS, compression=0.3, groups=4, ranks=again).matrices == report.matrices


def test_a_profile_that_is_proportional_to_parameters_gives_the_same_model(tiny: Tiny, tmp_path: Path) -> None:
    one, other = tiny(), tiny()
    compressed(one, made(matrices_of(tiny()), by_parameters), tmp_path)
    mgaa.compress_(other, TOKENS, compression=0.3, groups=4, ratios="uniform")
    assert all(torch.equal(a, b) for a, b in zip(states(one), states(other), strict=True))


def states(model: PreTrainedModel) -> list[Tensor]:
    return [*model.state_dict().values()]


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "objective": ({"objective": "speed"}, r"ranks\.objective is 'speed', expected 'parameters' or 'latency'"),
    "profile": ({"profile": None}, r"ranks\.profile is missing.*flows\.profile_device"),
    "idle": ({"objective": "parameters"}, r"ranks\.profile has no effect without ranks\.objective=latency"),
    "tokens": ({"tokens": 3}, r"ranks\.tokens is 3"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_make_no_objective_are_refused_before_anything_is_measured(
    tiny: Tiny, tmp_path: Path, case: str
) -> None:
    options, message = OPTIONS[case]
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        compressed(model, made(matrices_of(tiny()), by_parameters), tmp_path, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
