"""The main flow does what it promises: every step once, nothing twice, and a record that tells the truth about what it left."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mgaa.budget import Matrix, parameter_budget, rank_multiple
from mgaa.checkpoints.ownership import MARK
from mgaa.levels import adds_biases
from mgaa.methods import available_methods, method_traits
from tasks.artifacts.specs import MethodSpec, TargetSpec
from tasks.cache import source as code
from tasks.cache.artifact import MANIFEST, Artifact, Store
from tasks.cache.stage import File
from tasks.steps import allocate_ranks, allocate_ratios, decompose, factorize
from tests.support.allocations import reads_file
from tests.support.laboratory import BLOCKS, Outcome, TinyProject, documents, striking, write_model
from tests.support.processes import ROOT

Lab = tuple[TinyProject, Outcome]

EVERYTHING = {
    "load_backbone": 1,
    "read_texts": 1,
    "tokenize": 3,
    "calibrate": 1,
    "decompose": BLOCKS,
    "make_items": 1,
    "allocate_ratios": 2,
    "allocate_ranks": 2,
    "factorize": 2 * BLOCKS,
    "assemble": 2,
    "measure_perplexity": 6,
    "score_tasks": 3,
    "evaluate": 3,
    "generate": 3,
    "draw_figures": 1,
}
"""Executions of a first run with one baseline."""


def result(lab: TinyProject, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.root / "results" / name).read_text())
    return found


# What is executed, and what is not


def test_the_first_run_executes_every_step_and_counts_them(first: Lab) -> None:
    lab, outcome = first
    assert (outcome.code, outcome.message, outcome.executed) == (0, "", EVERYTHING)
    effort = result(lab, "metrics.json")["run"]
    assert (effort["executed"], effort["reused"]) == (sum(EVERYTHING.values()), 0)
    assert 0 < effort["work_seconds"] <= effort["wall_seconds"]


def test_the_same_run_again_executes_nothing_and_tells_the_same(done: TinyProject, first: Lab) -> None:
    assert done.run() == Outcome(0, "", {})
    assert done.records() == first[0].records()
    told, before = (result(lab, "metrics.json") for lab in (done, first[0]))
    assert (told["run"]["executed"], told["run"]["reused"]) == (0, sum(EVERYTHING.values()))
    for models in (told["models"], before["models"]):
        del models["uniform"]["checkpoint"]  # it lies in the store, and each laboratory has its own
    assert (told["models"], told["card"]) == (before["models"], before["card"])


@pytest.mark.slow
def test_readings_of_the_paper_execute_what_depends_on_them_and_in_the_identity_both_spectra_are_equal(
    done: TinyProject,
) -> None:
    svd = ("factors.method=svd", "evaluation.baselines=[]", "evaluation.tasks=[]", "evaluation.samples.number=0")
    assert done.run(*svd).code == 0
    plain = done.run(*svd, "ranks.spectrum=plain")
    assert (plain.code, plain.message) == (0, "")
    assert plain.executed == {
        "weigh_plain": BLOCKS,
        "allocate_ratios": 1,
        "allocate_ranks": 1,
    }  # equal ranks, nothing else
    ratios = result(done, "allocation.json")["mgaa"]["sublayers"]
    alone = done.run(*svd, "ratios.residual=false")
    assert {"allocate_ratios", "factorize"} <= alone.executed.keys()
    assert alone.executed.keys().isdisjoint({"calibrate", "decompose", "weigh_plain"})
    found = result(done, "allocation.json")["mgaa"]["sublayers"]
    for one, other in combinations(found, 2):  # what is more alike to its input loses no less
        if found[one]["branch_cosine"] < found[other]["branch_cosine"]:
            assert found[one]["ratio"] <= found[other]["ratio"] + 1e-12
    assert {x["ratio"] for x in found.values()} != {x["ratio"] for x in ratios.values()}


@pytest.mark.slow
def test_a_new_process_with_a_new_prefect_executes_nothing_and_writes_nothing_to_stderr(
    done: TinyProject, prefect_server: str
) -> None:
    home = str(done.root / "home")
    assert done.finish(PREFECT_HOME=home, PREFECT_API_URL=prefect_server) == Outcome(0, "", {})


@pytest.mark.slow
def test_a_killed_run_loses_nothing_and_the_next_one_gives_what_an_uninterrupted_one_gives(
    fresh: TinyProject, first: Lab, prefect_server: str
) -> None:
    killed = fresh.finish(before=striking("SIGKILL", "checkpoint", 2), PREFECT_API_URL=prefect_server)
    assert killed.code == -9
    rest = {
        "assemble": 1,
        "measure_perplexity": 2,
        "score_tasks": 1,
        "evaluate": 1,
        "generate": 3,
        "draw_figures": 1,
    }
    assert killed.executed == {
        name: number - rest.get(name, 0) for name, number in EVERYTHING.items() if number > rest.get(name, 0)
    }
    assert [path.name for path in (fresh.root / "store" / "checkpoint").glob(".tmp-*")] != []
    assert fresh.run() == Outcome(0, "", rest)
    assert fresh.records() == first[0].records()
    assert list(fresh.root.rglob(".tmp-*")) == []


@pytest.mark.slow
def test_another_target_executes_what_depends_on_it_and_every_baseline_has_its_parameters(
    done: TinyProject, first: Lab
) -> None:
    outcome = done.run("ratios.compression=0.3", "evaluation.baselines=[uniform,level1,level2]")
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed == {
        "allocate_ratios": 2,  # level 1 takes the method's, level 2 the uniform ones
        "allocate_ranks": 4,
        "factorize": 4 * BLOCKS,
        "assemble": 4,
        "measure_perplexity": 8,
        "score_tasks": 4,
        "evaluate": 4,
        "generate": 2,  # of the method and of uniform
        "draw_figures": 1,
    }
    models = result(done, "metrics.json")["models"]
    assert list(models) == ["dense", "uniform", "level1", "level2", "mgaa"]
    check_budgets(done, 0.3)
    allocations = result(done, "allocation.json")
    for level, ours in (("level1", "mgaa"), ("level2", "uniform")):
        mine, theirs = (
            {name: each["ratio"] for name, each in allocations[model]["sublayers"].items()} for model in (level, ours)
        )
        assert mine == theirs
    assert len({json.dumps(each["matrices"]) for each in allocations.values()}) == 4


def test_another_factorizer_keeps_the_statistics(done: TinyProject) -> None:
    outcome = done.run("factors.method=svd", "evaluation.baselines=[]")
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed == {
        "decompose": BLOCKS,
        "allocate_ratios": 1,
        "allocate_ranks": 1,
        "factorize": BLOCKS,
        "assemble": 1,
        "measure_perplexity": 2,
        "score_tasks": 1,
        "evaluate": 1,
        "generate": 1,
        "draw_figures": 1,
    }
    assert list(result(done, "metrics.json")["models"]) == ["dense", "mgaa"]


@pytest.mark.slow
def test_another_limit_of_the_tasks_measures_no_perplexity(done: TinyProject, first: Lab) -> None:
    outcome = done.run("evaluation.limit=5", "evaluation.baselines=[]")
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed == {"score_tasks": 2, "evaluate": 2, "draw_figures": 1}
    found, before = (result(lab, "metrics.json")["models"]["mgaa"] for lab in (done, first[0]))
    assert {task: score["n"] for task, score in found["tasks"].items()} == {"last_word": 5, "continuation": 5}
    assert {key: found[key] for key in PERPLEXITIES} == {key: before[key] for key in PERPLEXITIES}


@pytest.mark.slow
def test_without_tasks_no_perplexity_is_measured_again(done: TinyProject) -> None:
    outcome = done.run("evaluation.tasks=[]", "evaluation.baselines=[]")
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed == {"evaluate": 2, "draw_figures": 1}


@pytest.mark.slow
def test_other_evaluation_texts_measure_no_perplexity_of_the_validation_texts_again(done: TinyProject) -> None:
    outcome = done.run("data.evaluation.length=24", "evaluation.baselines=[]")
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed == {"tokenize": 1, "measure_perplexity": 2, "evaluate": 2, "draw_figures": 1}


def test_other_evaluation_texts_keep_everything_before_the_metrics(done: TinyProject) -> None:
    outcome = done.run("data.evaluation.from=0.75", "evaluation.baselines=[]")
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed == {
        "read_texts": 1,
        "tokenize": 3,
        "make_items": 1,
        "measure_perplexity": 2,
        "score_tasks": 2,
        "evaluate": 2,
        "generate": 2,
        "draw_figures": 1,
    }


def test_the_code_of_a_step_in_its_manifest_is_that_of_its_modules(first: Lab) -> None:
    (path,) = first[0].artifacts("statistics")
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["sources"] == code.sources("tasks.steps.calibrate")
    assert manifest["code"] == code.code_of("tasks.steps.calibrate:calibrate")


# What is left behind


MODEL = {
    *("perplexity", "bits_per_byte", "parameters", "linear_parameters", "compression", "bytes", "tasks", "seconds"),
    *("perplexity_stderr", "nll", "nll_stderr", "validation_perplexity", "model_compression"),
}
PERPLEXITIES = ("perplexity", "perplexity_stderr", "nll", "nll_stderr", "bits_per_byte", "validation_perplexity")
CARD = {
    "context_length",
    "tokens",
    "data_digest",
    "token_digest",
    "dtype",
    "non_finite",
    "stride",
    "bos_rule",
    "harness",
}


def test_the_metrics_have_the_published_shape(first: Lab) -> None:
    found = result(first[0], "metrics.json")
    assert found.keys() == {"models", "card", "run"}
    assert list(found["models"]) == ["dense", "uniform", "mgaa"]
    for name, model in found["models"].items():
        assert model.keys() == MODEL | (set() if name == "dense" else {"checkpoint"})
        assert model["tasks"].keys() == {"last_word", "continuation"}
        assert all({"acc", "stderr", "n"} <= task.keys() for task in model["tasks"].values())
        assert model["seconds"].keys() == {"compress", "evaluate"}
        assert (model["seconds"]["compress"] > 0) == (name != "dense")
    assert found["card"].keys() >= CARD
    assert (found["card"]["context_length"], found["card"]["non_finite"]) == (32, 0)
    assert found["models"]["mgaa"]["checkpoint"] == "models/compressed"
    assert (first[0].root / found["models"]["uniform"]["checkpoint"] / "config.json").is_file()


def check_budgets(lab: TinyProject, compression: float) -> None:
    """Every compressed model is within the budget, and what it leaves over buys no further step of any matrix."""
    backbone = json.loads((lab.artifacts("backbone")[0] / "backbone.json").read_text())
    matrices = [Matrix(**fields) for fields in backbone["matrices"]]
    total, budget = sum(m.parameters for m in matrices), parameter_budget(matrices, compression)
    models, step = result(lab, "metrics.json")["models"], rank_multiple(matrices, "auto")
    assert (models["dense"]["linear_parameters"], models["dense"]["compression"]) == (total, 0)
    for name, allocation in result(lab, "allocation.json").items():
        kept = sum(each["parameters"] for each in allocation["matrices"].values())
        assert kept == models[name]["linear_parameters"] == budget - allocation["slack"]
        assert models[name]["compression"] == 1 - kept / total >= compression
        left = {m: allocation["matrices"][m.name]["rank"] for m in matrices}
        dearer = [next_cost(m, rank, step) - m.cost(rank, centred=True) for m, rank in left.items() if rank is not None]
        assert 0 <= allocation["slack"] < min(dearer)
        biases = sum(m.m for m, rank in left.items() if rank is not None)  # afm's, counted in the budget
        assert models["dense"]["parameters"] - models[name]["parameters"] == total - kept
        assert biases > 0


def next_cost(matrix: Matrix, rank: int, step: int) -> int:
    above = rank + step
    return matrix.cost(above if above <= matrix.largest_rank(centred=True) else None, centred=True)


def test_every_model_is_within_the_budget_and_spends_it(first: Lab) -> None:
    check_budgets(first[0], 0.2)


FORWARD = """if True:
    import sys, torch, mgaa
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder, out = sys.argv[1:]
    ids = AutoTokenizer.from_pretrained(folder)("bade fugi kodu. larimo", return_tensors="pt").input_ids
    with torch.no_grad():
        save_file({"ids": ids, "logits": AutoModelForCausalLM.from_pretrained(folder)(ids).logits}, out)
"""


@pytest.mark.slow
def test_the_exported_checkpoint_in_a_new_process_is_the_evaluated_one_to_the_bit(first: Lab, tmp_path: Path) -> None:
    import torch

    from mgaa.checkpoints.save import load

    lab, _ = first
    command = [sys.executable, "-c", FORWARD, lab.root / "models" / "compressed", tmp_path / "found"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = load_file(tmp_path / "found")
    manifest = json.loads((lab.root / "models" / "compressed" / MANIFEST).read_text())
    evaluated = Store(lab.root / "store").folder(Artifact("checkpoint", manifest["digest"]))
    with torch.no_grad():
        assert torch.equal(load(evaluated, device="cpu")[0](found["ids"]).logits, found["logits"])


def test_the_exported_checkpoint_carries_its_manifest_and_its_evaluation(first: Lab) -> None:
    lab, _ = first
    folder, metrics = lab.root / "models" / "compressed", result(lab, "metrics.json")
    manifest = json.loads((folder / MANIFEST).read_text())
    checkpoint = {"kind": "checkpoint", "digest": manifest["digest"]}
    (measured,) = (
        each for each in map(joined_manifests, lab.artifacts("metrics")) if each[1]["inputs"]["model"] == checkpoint
    )
    assert metrics["models"]["mgaa"]["seconds"]["evaluate"] == pytest.approx(sum(each["seconds"] for each in measured))
    assert [each["task"] for each in measured] == ["evaluate", *["measure_perplexity"] * 2, "score_tasks"]
    assert {each["parameters"]["windows"]["length"] for each in measured[1:3]} == {32}
    assert manifest["files"].keys() == {path.name for path in folder.iterdir()} - {
        MANIFEST,
        MARK,
        "evaluation.json",
        "README.md",
    }
    assert json.loads((folder / "evaluation.json").read_text()) == {
        "model": metrics["models"]["mgaa"],
        "card": metrics["card"],
    }


def joined_manifests(metrics: Path) -> list[dict[str, Any]]:
    """The manifest of the artifact in a folder of the store, and those of what it joins."""
    manifest = json.loads((metrics / MANIFEST).read_text())
    inputs = manifest["inputs"]
    joined = [inputs["evaluation"], inputs["validation"], *inputs["scores"]]
    places = (metrics.parents[1] / each["kind"] / each["digest"] for each in joined)
    return [manifest, *(json.loads((place / MANIFEST).read_text()) for place in places)]


def test_what_is_left_can_be_read_by_whoever_may_read_the_folder(first: Lab) -> None:
    lab, _ = first
    usual, places = lab.root / "params.yaml", ("models/**/*", "results/**/*", "store/*/*/*")
    found = {place: [*lab.root.glob(place)] for place in places}
    assert min(map(len, found.values())) > 5
    for path in chain(*found.values()):
        assert path.is_dir() or path.stat().st_mode == usual.stat().st_mode, path


def test_the_lineage_of_the_checkpoint_reaches_the_files_it_came_from(first: Lab) -> None:
    lab, _ = first
    store, seen = Store(lab.root / "store"), {}
    manifest = json.loads((lab.root / "models" / "compressed" / MANIFEST).read_text())
    waiting = [Artifact("checkpoint", manifest["digest"])]
    while waiting:
        artifact = waiting.pop()
        seen[artifact] = store.manifest(artifact)
        for inputs in seen[artifact]["inputs"].values():
            waiting += [Artifact(**each) for each in (inputs if isinstance(inputs, list) else [inputs])]
    kinds = {artifact.kind for artifact in seen}
    assert kinds == {"checkpoint", "factors", "ranks", "ratios", "spectra", "statistics", "tokens", "texts", "backbone"}
    (texts,) = [each for artifact, each in seen.items() if artifact.kind == "texts"]
    assert texts["parameters"]["content"]["calibration"].keys() == {"texts.txt"}
    (backbone,) = [each for artifact, each in seen.items() if artifact.kind == "backbone"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= backbone["parameters"]["files"].keys()


def test_figures_and_plots_are_there(first: Lab) -> None:
    results = first[0].root / "results"
    assert {path.name for path in (results / "figures").glob("*.png")} == {
        f"{name}.png" for name in ("ranks", "sublayers", "energies", "errors", "sizes")
    }
    assert {path.name for path in (results / "plots").glob("[!.]*")} == {"ranks.csv", "sublayers.csv", "sizes.csv"}


# Allocations from a file


@pytest.fixture
def saved(first: Lab, tmp_path: Path) -> Path:
    """The allocation of the first run, where no later run overwrites it."""
    return Path(shutil.copy(first[0].root / "results" / "allocation.json", tmp_path / "saved allocation.json"))


def from_file(path: Path, *others: str) -> tuple[str, ...]:
    return "ranks.method=file", f"ranks.path={path}", *others


ALLOCATED = {"allocate_ratios": 1, "allocate_ranks": 1}


@pytest.mark.slow
def test_an_allocation_from_a_file_gives_the_artifacts_it_came_from(
    done: TinyProject, first: Lab, saved: Path, tmp_path: Path
) -> None:
    """So nothing behind them is executed; and its content is what counts, not its place or its time."""
    assert done.run(*from_file(saved)) == Outcome(0, "", ALLOCATED)
    assert result(done, "allocation.json") == result(first[0], "allocation.json")
    saved.touch()
    moved = shutil.move(saved, tmp_path / "moved.json")
    assert done.run(*from_file(moved)) == Outcome(0, "", {})
    moved.write_text(moved.read_text() + "\n")
    assert done.run(*from_file(moved)) == Outcome(0, "", ALLOCATED)


def test_the_stage_key_holds_the_content_of_the_file(done: TinyProject, saved: Path) -> None:
    outcome = done.run(*from_file(saved, "ranks.model=uniform", "evaluation.baselines=[]"))
    assert (outcome.code, outcome.message) == (0, "")
    stages = [json.loads(path.read_bytes())["stage"] for path in done.root.glob("store/keys/*.json")]
    expected = {"path": f"sha256:{hashlib.sha256(saved.read_bytes()).hexdigest()}", "model": "uniform"}
    found = {
        each["task"]
        for each in stages
        for value in each["parameters"].values()
        if isinstance(value, dict) and expected.items() <= value.get("options", {}).items()
    }
    assert found == ALLOCATED.keys()


@pytest.mark.slow
def test_an_allocation_of_a_base_model_is_that_of_its_chat_model(
    fresh: TinyProject, saved: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "chat", documents(seed=1), seed=1)
    source = f"backbone.source={tmp_path / 'chat'}"
    outcome = fresh.run(source, *from_file(saved, "evaluation.tasks=[]"))
    assert (outcome.code, outcome.message) == (0, "")
    base, chat = json.loads(saved.read_text())["mgaa"], result(fresh, "allocation.json")["mgaa"]
    for level, keys in {"sublayers": ("ratio", "reached"), "matrices": ("m", "n", "rank", "parameters")}.items():
        for name, each in base[level].items():
            assert [chat[level][name][key] for key in keys] == [each[key] for key in keys]
    assert chat["sublayers"]["0.ffn"]["cosine"] != base["sublayers"]["0.ffn"]["cosine"]
    even = fresh.run(
        source, "ratios.method=file", f"ratios.path={saved}", "ratios.model=uniform", "evaluation.tasks=[]"
    )
    assert (even.code, even.message) == (0, "")
    uniform = json.loads(saved.read_text())["uniform"]["sublayers"]
    found = result(fresh, "allocation.json")["mgaa"]["sublayers"]
    assert {name: each["ratio"] for name, each in found.items()} == {name: x["ratio"] for name, x in uniform.items()}


def without_a_block(entry: dict[str, Any]) -> None:
    entry["matrices"] = {name: each for name, each in entry["matrices"].items() if ".layers.2." not in name}


UNFIT: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...], int, str]] = {
    "another model": (without_a_block, (), 2, "allocation file for another model: .*layers.2.* missing in the file"),
    "another compression": (lambda entry: None, ("ratios.compression=0.3",), 2, "are for compression 0.2, but ratios"),
    "a damaged file": (lambda entry: entry.pop("budget"), (), 3, "budget of mgaa in .* is null, expected a whole"),
    "ratios by hand": (lambda entry: None, ("ratios.temperature=1.0",), 2, "ratios.temperature has no effect with"),
    "a baseline that is no other": (
        lambda entry: None,
        ("evaluation.baselines=[level2]",),
        2,
        "level2, which .* is the same as mgaa",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_allocation_that_does_not_fit_costs_no_calibration(fresh: TinyProject, saved: Path, case: str) -> None:
    change, overrides, code, message = UNFIT[case]
    content = json.loads(saved.read_text())
    change(content["mgaa"])
    saved.write_text(json.dumps(content))
    outcome = fresh.run(*from_file(saved, *overrides))
    assert outcome.code == code
    assert re.search(message, outcome.message)
    assert outcome.executed in ({}, {"load_backbone": 1})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ratios.compression=0.995", "compression 0.995 is out of reach"),
        ("ratios.temperature=0.0", "ratios.temperature is 0.0, expected a positive number"),
        ("ranks.multiple=500", "ranks.multiple is 500, but .* breaks even above rank"),
        ("evaluation.tasks=[last_wrd]", "evaluation.tasks has 'last_wrd', expected some of"),
    ],
)
def test_what_the_data_cannot_change_is_refused_before_the_calibration(
    fresh: TinyProject, override: str, message: str
) -> None:
    outcome = fresh.run(override)
    assert outcome.code == 2
    assert re.search(message, outcome.message)
    assert not outcome.executed.keys() & {"calibrate", "decompose"}


# Every method, by its name in `params.yaml`

Measured = tuple[Store, Artifact, Artifact, Callable[[str], list[Artifact]]]


@pytest.fixture(scope="module")
def measured(first: Lab, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A store after the first run with its backbone and statistics, and the spectra by factorizer."""
    lab = first[0].copy(tmp_path_factory.mktemp("methods") / "measured")
    store = Store(lab.root / "store")
    backbone, statistics = (Artifact(kind, lab.artifacts(kind)[0].name) for kind in ("backbone", "statistics"))

    def spectra(method: str) -> list[Artifact]:
        shared: dict[str, Any] = {"factors": MethodSpec(method, {}), "device": "cpu"}
        return [decompose.decompose.fn(store, backbone, statistics, block=b, **shared) for b in range(BLOCKS)]

    return store, backbone, statistics, spectra


@pytest.mark.parametrize(
    "method",
    [name for name in available_methods("factors") if not method_traits("factors", name).gradients],
)
def test_every_factorizer_gives_spectra_and_factors(method: str, measured: Measured) -> None:
    store, backbone, _, spectra = measured
    even1, even2 = MethodSpec("uniform", {"band": None}), MethodSpec("uniform", {})
    centred = adds_biases((method, {}))
    _, ranks = allocated(measured, spectra(method), TargetSpec(0.25, "auto"), even1, even2, centred=centred)
    factors = factorize.factorize.fn(store, backbone, spectra(method)[0], None, ranks, block=0, device="cpu")
    names = load_file(store.folder(factors) / "block-0000.safetensors").keys()
    assert {name.rpartition("/")[2] for name in names} == {"A", "B"} | ({"bias"} if centred else set())


def allocated(
    measured: Measured,
    spectra: list[Artifact],
    target: TargetSpec,
    above: MethodSpec,
    below: MethodSpec,
    *,
    centred: bool,
) -> tuple[Artifact, Artifact]:
    store, backbone, statistics, _ = measured
    ratios = allocate_ratios.allocate_ratios.fn(
        store, backbone, statistics, ratios=above, target=target, centred=centred
    )
    ranks = allocate_ranks.allocate_ranks.fn(store, backbone, spectra, [], ratios, ranks=below, target=target)
    return ratios, ranks


@pytest.mark.parametrize("level1", available_methods("ratios"))
@pytest.mark.parametrize("level2", available_methods("ranks"))
def test_every_pair_of_levels_meets_the_budget(level1: str, level2: str, measured: Measured, first: Lab) -> None:
    store, _, _, spectra = measured
    file = {"path": File(first[0].root / "results" / "allocation.json")}
    above = MethodSpec(level1, {"band": None, **(file if reads_file("ratios", level1) else {})})
    below = MethodSpec(level2, file if reads_file("ranks", level2) else {})
    _, ranks = allocated(measured, spectra("afm"), TargetSpec(0.2, "auto"), above, below, centred=True)
    outcome = json.loads((store.folder(ranks) / "ranks.json").read_text())
    assert 0.98 * outcome["budget"] < outcome["linear_parameters"] <= outcome["budget"]
