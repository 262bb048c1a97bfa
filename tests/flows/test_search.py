"""A search tries every point once, loses none to a kill or to a point that fails, and never looks at text that is reported on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pytest

from flows.command.cli import main
from flows.search import search
from flows.show_search import show
from mgaa.budget import Matrix, parameter_budget
from tasks.cache.artifact import Artifact, Store
from tasks.record.lineage import describe_lineage
from tests.flows.test_faults import wide_range
from tests.support.laboratory import BLOCKS, Outcome, TinyProject, change, runs, striking

pytestmark = pytest.mark.slow

SMALL = (
    "method=bolaco",
    *("search.evaluations=4", "search.initial=2", "search.windows=6", "search.candidates=12", "search.selection=2"),
    "evaluation.tasks=[]",
)
STUDY = (*SMALL, "study.groups=[1,2]", "search.batch=2")
NAMES = ["random-1-seed0", "gp-1-seed0", "random-2-seed0", "gp-2-seed0"]
TRIALS = 4 * 4 - 2 * 2
"""Of the four searches; the first two of each Gaussian process are those of the random search beside it."""
EVERYTHING = {
    "load_backbone": 1,
    "read_texts": 1,
    "tokenize": 4,  # calibration, validation, evaluation, and the candidates
    "calibrate": 1,
    "decompose": BLOCKS,
    "allocate_point": TRIALS,  # those that choose the windows are the first of random search
    "choose_windows": 1,
    "keep_reference": 1,
    "allocate_ratios": 1,
    "allocate_ranks": 1,
    "propose": 4 * 2,
    "try_ranks": 0,
    "take_best": 4,
    "measure": 2 + 6,  # to choose windows; dense, MGAA and four searches
}


@dataclass(frozen=True)
class Searched:
    """A laboratory after a study of four searches, what that told, and its run and children in MLflow; look, and copy it."""

    lab: TinyProject
    outcome: Outcome
    parent: Any
    children: dict[str, Any]


@pytest.fixture(scope="module")
def searched(empty: TinyProject, tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Searched:
    lab = empty.copy(tmp_path_factory.mktemp("search") / "searched", store=False)
    return Searched(lab, lab.run(*STUDY, flow=search), *runs(lab, "search"))


@pytest.fixture
def done(searched: Searched, tmp_path: Path) -> TinyProject:
    """A laboratory of the test's own after that study."""
    return searched.lab.copy(tmp_path / "done")


def result(lab: TinyProject, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.root / "results" / name).read_text())
    return found


def matrices(lab: TinyProject) -> list[Matrix]:
    (path,) = lab.artifacts("backbone")
    return [Matrix(**fields) for fields in json.loads((path / "backbone.json").read_text())["matrices"]]


# What is executed, and what is not


def test_a_study_shares_one_calibration_one_decomposition_and_the_windows_and_tries_every_point_once(
    searched: Searched,
) -> None:
    outcome = searched.outcome
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed | {"try_ranks": 0} == EVERYTHING
    assert TRIALS / 2 < outcome.executed["try_ranks"] <= TRIALS + 1  # and MGAA's; points may round to the same ranks
    assert {path.name for path in (searched.lab.root / "store").iterdir()}.isdisjoint({"factors", "checkpoint"})


def test_one_more_evaluation_costs_one_more_trial_of_each_search(done: TinyProject) -> None:
    outcome = done.run(*STUDY, "search.evaluations=5", flow=search)
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed["try_ranks"] <= 4
    assert outcome.executed["allocate_point"] == 4
    assert outcome.executed.keys() <= {"allocate_point", "propose", "try_ranks", "take_best", "measure"}


@pytest.mark.nightly
def test_a_killed_search_goes_on_at_its_next_trial_and_its_checkpoint_descends_from_all_of_them(
    fresh: TinyProject, prefect_server: str
) -> None:
    given = (*SMALL, "evaluation.baselines=[mgaa]", "search.start=mgaa")
    killed = fresh.finish(*given, before=striking("SIGKILL", "trial", 4), PREFECT_API_URL=prefect_server)
    assert killed.code == -9  # with MGAA and two trials behind it, and one whose name was missing
    outcome = fresh.run(*given)
    assert (outcome.code, outcome.message) == (0, "")
    both = {name: killed.executed.get(name, 0) + outcome.executed.get(name, 0) for name in outcome.executed}
    assert (killed.executed["try_ranks"], both["try_ranks"]) == (3, 5)
    assert [*result(fresh, "metrics.json")["models"]] == ["dense", "mgaa", "bolaco"]
    manifest = json.loads((fresh.root / "models" / "compressed" / "manifest.json").read_text())
    behind = describe_lineage(Store(fresh.root / "store"), [Artifact(manifest["kind"], manifest["digest"])])
    kinds = [name.partition("/")[0] for name in behind]
    assert (kinds.count("trial"), "reference" in kinds, "proposal" in kinds) == (4, True, True)


# What is found


def test_every_trial_keeps_the_budget_and_leaves_the_values_dense(searched: Searched) -> None:
    lab = searched.lab
    budget = parameter_budget(matrices(lab), 0.2)
    tables = [json.loads((path / "ranks.json").read_text()) for path in lab.artifacts("ranks")]
    searches = [
        table for table, path in zip(tables, lab.artifacts("ranks"), strict=True) if (path / "ratios.json").exists()
    ]
    assert len(searches) >= TRIALS
    for table in searches:
        assert table["linear_parameters"] <= table["budget"] == budget
        assert all(each["rank"] is None for name, each in table["matrices"].items() if name.endswith("v_proj"))


def test_the_record_tells_every_trial_and_the_best_of_each_search_is_its_least(searched: Searched) -> None:
    found, trials = (
        result(searched.lab, "search/search.json"),
        pandas.read_csv(searched.lab.root / "results/search/trials.csv"),
    )
    assert [*found["searches"]] == NAMES
    for name, each in found["searches"].items():
        values = [trial["objective"] for trial in each["trials"]]
        own = trials[trials.search == name]
        assert values[each["best"]] == min(values) == own.best.iloc[-1]
        assert own.best.is_monotonic_decreasing
        for trial in each["trials"]:
            assert trial["objective"] == pytest.approx(trial["perplexity"] + 1e-3 * trial["divergence"], rel=1e-12)
            assert trial["divergence"] > 0
    first, second = (found["searches"][name]["trials"] for name in NAMES[:2])
    assert [trial["point"] for trial in first[:2]] == [trial["point"] for trial in second[:2]]
    assert first[2]["point"] != second[2]["point"]


def test_the_best_allocations_are_measured_on_the_evaluation_text_beside_mgaa(searched: Searched) -> None:
    table = pandas.read_csv(searched.lab.root / "results/search/study.csv")
    assert [*table.search] == ["dense", "mgaa", *NAMES]
    assert [*table.evaluations[2:]] == [4] * 4
    budget = parameter_budget(matrices(searched.lab), 0.2)
    assert (table.linear_parameters[1:] <= budget).all()
    assert (budget - table.linear_parameters[1:] < 48 + 96).all()  # one step of the largest matrix
    assert table.above_dense[0] == 0


def test_every_trial_is_a_task_and_a_child_run_with_its_shares(searched: Searched) -> None:
    assert searched.children.keys() == {f"{name}-{number}" for name in NAMES for number in range(4)}
    child = searched.children["gp-2-seed0-3"]
    trial = result(searched.lab, "search/search.json")["searches"]["gp-2-seed0"]["trials"][3]
    assert child.data.metrics["objective"] == trial["objective"]
    assert {name.removeprefix("share/"): float(value) for name, value in child.data.params.items()} == trial["shares"]
    assert child.info.status == searched.parent.info.status == "FINISHED"
    assert searched.parent.data.metrics["objective/gp-1-seed0"] > 0


def test_the_windows_are_the_candidates_that_tell_allocations_apart(searched: Searched) -> None:
    cards = [json.loads((path / "card.json").read_text()) for path in searched.lab.artifacts("tokens")]
    (selection,) = [card["selection"] for card in cards if "selection" in card]
    assert (selection["candidates"], selection["allocations"], len(selection["windows"])) == (12, 2, 6)
    assert selection["variance_chosen"] > selection["variance_candidates"]


def test_the_figures_and_the_table_are_there_for_people(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    folder = searched.lab.root / "results" / "search"
    assert {path.name for path in folder.glob("[!.]*")} == {
        *("search.json", "trials.csv", "study.csv", "allocation.json", "best.png", "best.svg", "ranks.png", "ranks.svg")
    }
    assert main(lambda parameters: None, [f"--params={searched.lab.root / 'params.yaml'}", *STUDY], show=show) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("dense", "MGAA", "random search", "Gaussian process"))


def test_an_allocation_is_reused_on_another_model_of_the_same_shape(done: TinyProject, searched: Searched) -> None:
    file = searched.lab.root / "results" / "search" / "allocation.json"
    other = done.copy_model(done.root / "other")
    change(other, "model.layers.0.mlp.up_proj.weight", lambda weight: weight.mul_(1.5))
    given = (f"backbone.source={other}", "factors.method=pooled", "ranks.method=file", f"ranks.path={file}")
    outcome = done.run(*given, "evaluation.baselines=[]", "evaluation.tasks=[]")
    assert (outcome.code, outcome.message) == (0, "")
    there, here = [*json.loads(file.read_text()).values()][-1], result(done, "allocation.json")["mgaa"]
    for part in ("matrices", "sublayers"):
        keys = ("rank",) if part == "matrices" else ("ratio",)
        assert [[each[key] for key in keys] for each in here[part].values()] == [
            [each[key] for key in keys] for each in there[part].values()
        ]


# Trials that fail


def test_a_trial_that_fails_is_recorded_and_excluded_and_the_search_goes_on(fresh: TinyProject, tmp_path: Path) -> None:
    broken = fresh.copy_model(tmp_path / "broken")
    wide_range(broken)  # its query projection can only stay dense in float16
    given = (f"backbone.source={broken}", "backbone.dtype=float16", *STUDY, "study.groups=[1]", "search.selection=8")
    outcome = fresh.run(*given, "search.evaluations=8", "search.divergence=0.0", flow=search)
    assert (outcome.code, outcome.message) == (0, "")
    assert "leave the range of torch.float16" in result(fresh, "search/search.json")["mgaa"]["error"]
    assert [*pandas.read_csv(fresh.root / "results/search/study.csv").search] == [
        "dense",
        "random-1-seed0",
        "gp-1-seed0",
    ]
    for each in result(fresh, "search/search.json")["searches"].values():
        failed = [trial for trial in each["trials"] if "error" in trial]
        assert 0 < len(failed) < 8
        assert all("leave the range of torch.float16" in trial["error"] for trial in failed)
        assert each["trials"][each["best"]]["objective"] == min(
            trial["objective"] for trial in each["trials"] if "error" not in trial
        )
        assert all(trial["shares"]["qk 0-2"] == 1.0 for trial in each["trials"] if "error" not in trial)
    _, children = runs(fresh, "search")
    assert {run.info.status for run in children.values()} == {"FINISHED", "FAILED"}


# What is refused, and when


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (
            ["ratios.compression=0.85"],
            2,
            ["0.85 is out of reach of this search", "the largest reachable compression is"],
        ),
        (["search.groups=4"], 2, ["search.groups is 4, expected 1 to 3"]),
        (["search.dense=[w]"], 2, ["search.dense has 'w', expected types of this model: qk, v, o, gate, up, down"]),
        (["search.windows=20"], 2, ["expected windows <= candidates"]),
        (
            ["search.method=random", "search.history=a.json", "evaluation.baselines=[]"],
            2,
            ["search.history is 'a.json'"],
        ),
        (["search.history=nowhere.json"], 3, ["nowhere.json, which cannot be read"]),
        (["statistics.inputs=compressed"], 2, ["statistics.inputs is 'compressed'", "statistics.inputs=dense"]),
        (["channels.method=weighted"], 2, ["channels.method is 'weighted'", "channels.method=none"]),
        (["ranks.method=file", "ranks.path=nowhere.json"], 2, ["ranks.method is 'file'", "search.method=none"]),
        (["method=mgaa", "search.method=gp"], 2, ["method is 'mgaa', but with search.method=gp", "method=bolaco"]),
        (
            ["search.method=none"],
            2,
            ["evaluation.baselines has random, but with search.method=none nothing is searched"],
        ),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_what_cannot_be_searched_is_refused_before_anything_is_measured(
    done: TinyProject, overrides: list[str], code: int, words: list[str]
) -> None:
    outcome = done.run(*SMALL, "evaluation.baselines=[random]", *overrides)
    assert (outcome.code, outcome.executed) == (code, {})
    assert all(word in outcome.message for word in words), outcome.message


def test_too_little_validation_text_is_told_by_the_setting_that_asks_for_it(done: TinyProject) -> None:
    outcome = done.run(*SMALL, "search.candidates=100000", "evaluation.baselines=[]")
    assert (outcome.code, outcome.executed) == (3, {})
    assert "search.candidates is 100000" in outcome.message


def test_a_search_on_text_that_is_reported_on_is_refused(done: TinyProject) -> None:
    outcome = done.run(*STUDY, "data.validation.from=0.8", "data.validation.to=0.9", flow=search)
    assert (outcome.code, outcome.executed) == (2, {})
    assert "data.validation" in outcome.message
    assert "the ranges overlap" in outcome.message


def test_a_study_needs_a_search_and_no_recovery(done: TinyProject) -> None:
    for given, words in (
        ([], "search.method is 'none', but flows.search compares the Gaussian process with random search"),
        (["method=bolaco", "study.seeds=[0,0]"], "seeds.1 is seeds.0 again"),
        (["method=bolaco", "recovery.method=lora"], "recovery.method is 'lora'"),
    ):
        outcome = done.run(*given, flow=search)
        assert (outcome.code, outcome.executed) == (2, {})
        assert words in outcome.message


def test_the_trials_of_an_earlier_search_are_known_from_the_start_if_they_say_something(
    done: TinyProject, searched: Searched
) -> None:
    history = done.root / "earlier.json"
    history.write_text(json.dumps(result(searched.lab, "search/search.json")))
    one = (*SMALL, "study.groups=[1]", f"search.history={history}", "search.evaluations=2", "study.seeds=[1]")
    outcome = done.run(*one, flow=search)
    assert (outcome.code, outcome.message) == (0, "")
    before = [
        trial
        for each in (0, 1)
        for trial in result(searched.lab, "search/search.json")["searches"][NAMES[each]]["trials"]
    ]
    found = result(done, "search/search.json")["searches"]["gp-1-seed1"]
    best = min(before, key=lambda trial: trial["objective"])
    assert found["trials"][0]["point"] == best["point"]  # measured again, so that it can be the result
    assert found["trials"][1]["point"] not in [trial["point"] for trial in before]
    assert len(found["earlier"]) == len(before)  # the next search knows them as well
    for changed, words in (
        ("search.least=0.3", "space: least 0.2 there and 0.3 here"),
        ("search.divergence=0.01", "another weight of the divergence"),
    ):
        outcome = done.run(*one, changed, flow=search)
        assert outcome.code == 2
        assert words in outcome.message
    other = done.copy_model(done.root / "other")
    change(other, "model.layers.0.mlp.up_proj.weight", lambda weight: weight.mul_(1.5))
    outcome = done.run(*one, f"backbone.source={other}", flow=search)
    assert outcome.code == 2
    assert "another model" in outcome.message
    for damaged in ("[", '{"searches": {"a": {"identity": {}, "trials": 3}}}'):
        history.write_text(damaged)
        outcome = done.run(*one, flow=search)
        assert (outcome.code, outcome.executed) == (3, {})
        assert "search.history is" in outcome.message
