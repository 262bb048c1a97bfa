"""`method=lorap` and recovery through the real flow: what is executed, killed, taken up again, recorded and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mgaa
from mgaa.compress import LORAP
from tests.support.laboratory import BLOCKS, Outcome, TinyProject, striking

pytestmark = pytest.mark.slow

Lab = tuple[TinyProject, Outcome]
METHOD = ("method=lorap", "ratios.compression=0.3", "evaluation.tasks=[]")
RECOVERY = (
    "recovery.method=lora",
    "recovery.steps=4",
    "recovery.batch=8",
    "recovery.rate=0.002",
    "recovery.evaluate_every=2",
    "recovery.precision=float32",
)
ONE_BY_ONE = {
    "load_backbone": 1,
    "read_texts": 1,
    "tokenize": 3,
    "calibrate": 1,
    "allocate_ratios": 2,
    "compress_block": 2 * BLOCKS,
    "collect_ranks": 2,
    "assemble": 2,
    "measure_perplexity": 6,
    "evaluate": 3,
    "generate": 3,
    "draw_figures": 1,
}
"""Executions of a first run with one baseline."""
RECOVERED = {
    "make_examples": 1,
    "recover": 1,
    "collect_recovered": 1,
    "measure_perplexity": 2,
    "evaluate": 1,
    "generate": 1,
    "draw_figures": 1,
}


@pytest.fixture(scope="module")
def lorap(empty: TinyProject, tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Lab:
    """A laboratory after a run of LoRAP; look, and copy it."""
    lab = empty.copy(tmp_path_factory.mktemp("lorap") / "lab", store=False)
    return lab, lab.run(*METHOD)


@pytest.fixture(scope="module")
def tuned(lorap: Lab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The same after a run with recovery."""
    lab = lorap[0].copy(tmp_path_factory.mktemp("tuned") / "lab")
    return lab, lab.run(*METHOD, *RECOVERY)


def result(lab: TinyProject, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.root / "results" / name).read_text())
    return found


# Block after block


def test_the_blocks_are_compressed_one_after_the_other_and_a_second_run_executes_nothing(lorap: Lab) -> None:
    lab, outcome = lorap
    assert (outcome.code, outcome.message, outcome.executed) == (0, "", ONE_BY_ONE)
    assert lab.run(*METHOD) == Outcome(0, "", {})
    assert list(result(lab, "metrics.json")["models"]) == ["dense", "uniform", "lorap"]


def test_the_checkpoint_is_what_one_call_from_python_gives(lorap: Lab) -> None:
    import torch

    from tasks.artifacts.files import token_windows
    from tasks.cache.artifact import Artifact, Store

    lab, _ = lorap
    (record,) = [
        json.loads(path.read_bytes())
        for path in lab.root.glob("store/keys/*.json")
        if json.loads(path.read_bytes())["stage"]["parameters"].get("section") == "calibration"
    ]
    tokens = token_windows(Store(lab.root / "store"), Artifact(record["kind"], record["digest"]))
    model, _ = mgaa.load(lab.model, device="cpu")
    report = mgaa.compress_(model, tokens, compression=0.3, groups=4, **LORAP)
    made, _ = mgaa.load(lab.root / "models" / "compressed", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), model.state_dict().values(), strict=True))
    told = result(lab, "allocation.json")["lorap"]
    assert [told["matrices"][x.name].get("width") for x in report.matrices] == [x.width for x in report.matrices]
    assert [told["matrices"][x.name]["rank"] for x in report.matrices] == [x.rank for x in report.matrices]
    assert (told["linear_parameters"], told["slack"]) == (report.linear_parameters, report.budget_left)


@pytest.mark.nightly
def test_a_run_that_is_killed_at_a_block_gives_the_digests_of_an_uninterrupted_one(
    empty: TinyProject, lorap: Lab, tmp_path: Path, prefect_server: str
) -> None:
    lab = empty.copy(tmp_path / "killed", store=False)
    killed = lab.finish(*METHOD, before=striking("SIGKILL", "factors", 2), PREFECT_API_URL=prefect_server)
    assert killed.code == -9
    assert killed.executed["compress_block"] == 1
    again = lab.run(*METHOD)
    assert (again.code, again.executed["compress_block"]) == (0, 2 * BLOCKS - 1)
    assert lab.records() == lorap[0].records()


def test_another_compression_measures_the_blocks_again_but_not_the_cosines(lorap: Lab, tmp_path: Path) -> None:
    lab = lorap[0].copy(tmp_path / "lab")
    outcome = lab.run("method=lorap", "ratios.compression=0.5", "evaluation.baselines=[]", "evaluation.tasks=[]")
    assert outcome.executed == {
        "allocate_ratios": 1,
        "compress_block": BLOCKS,
        "collect_ranks": 1,
        "assemble": 1,
        "measure_perplexity": 2,
        "evaluate": 1,
        "generate": 1,
        "draw_figures": 1,
    }
    entry = result(lab, "allocation.json")["lorap"]
    assert 0 <= entry["slack"] == entry["budget"] - entry["linear_parameters"]
    config = json.loads((lab.root / "models/compressed/config.json").read_text())
    assert config["quantization_config"]["widths"] == [48] * BLOCKS


def test_with_dense_inputs_the_spectra_are_shared_and_the_channels_scored_once(lorap: Lab, tmp_path: Path) -> None:
    lab = lorap[0].copy(tmp_path / "lab")
    outcome = lab.run(*METHOD, "statistics.inputs=dense")
    assert outcome.code == 0
    assert outcome.executed == {
        "calibrate": 1,
        "allocate_ratios": 2,
        "decompose": BLOCKS,
        "score_channels": BLOCKS,
        "allocate_ranks": 2,
        "factorize": 2 * BLOCKS,
        "assemble": 2,
        "measure_perplexity": 4,
        "evaluate": 2,
        "generate": 2,
        "draw_figures": 1,
    }
    widths = {each.get("width") for each in result(lab, "allocation.json")["lorap"]["matrices"].values()}
    assert widths == {None, 67}


def test_mgaa_and_its_baselines_run_behind_compressed_blocks(lorap: Lab, tmp_path: Path) -> None:
    lab = lorap[0].copy(tmp_path / "lab")
    outcome = lab.run(
        "statistics.inputs=compressed", "evaluation.baselines=[uniform,level1,level2]", "evaluation.tasks=[]"
    )
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed["compress_block"] == 4 * BLOCKS
    for entry in result(lab, "allocation.json").values():
        assert entry["slack"] >= 0


# Recovery


def test_recovery_adds_its_steps_and_reports_the_model_before_it(tuned: Lab) -> None:
    lab, outcome = tuned
    assert (outcome.code, outcome.message, outcome.executed) == (0, "", RECOVERED)
    models = result(lab, "metrics.json")["models"]
    assert list(models) == ["dense", "uniform", "unrecovered", "lorap"]
    assert models["lorap"]["validation_perplexity"] < models["unrecovered"]["validation_perplexity"]
    assert models["lorap"]["linear_parameters"] > models["unrecovered"]["linear_parameters"]
    assert lab.run(*METHOD, *RECOVERY) == Outcome(0, "", {})


def test_the_recovered_checkpoint_holds_its_losses_and_the_ranks_that_the_table_tells(tuned: Lab) -> None:
    lab, _ = tuned
    curve = json.loads((lab.root / "models/compressed/recovery.json").read_text())
    assert (curve["plan"]["steps"], curve["points"][0]["step"], curve["points"][-1]["step"]) == (4, 0, 4)
    model, _ = mgaa.load(lab.root / "models/compressed", device="cpu")
    allocation = result(lab, "allocation.json")["lorap"]
    for name, matrix in allocation["matrices"].items():
        layer = model.get_submodule(name)
        assert getattr(layer, "rank", None) == matrix["rank"], name
        assert sum(p.numel() for key, p in layer.named_parameters() if "weight" in key) == matrix["parameters"], name
    assert allocation["slack"] == allocation["budget"] - allocation["linear_parameters"]


def test_tuning_the_factors_keeps_the_budget(lorap: Lab, tmp_path: Path) -> None:
    lab = lorap[0].copy(tmp_path / "lab")
    assert lab.run(*METHOD, *RECOVERY, "recovery.tune=factors", "evaluation.baselines=[]").code == 0
    models = result(lab, "metrics.json")["models"]
    assert models["lorap"]["linear_parameters"] == models["unrecovered"]["linear_parameters"]
    assert models["lorap"]["bytes"] == models["unrecovered"]["bytes"]


def test_the_losses_and_the_widths_are_in_mlflow(tuned: Lab) -> None:
    from mlflow import MlflowClient

    lab, _ = tuned
    client = MlflowClient(uri_of(lab))
    (experiment,) = [each for each in client.search_experiments() if each.name == "mgaa"]
    runs = client.search_runs([experiment.experiment_id], "params.recovery.method = 'lora'", max_results=50)
    run = next(run for run in runs if run.data.params["recovery.tune"] == "product" and run.info.status == "FINISHED")
    assert [each.step for each in client.get_metric_history(run.info.run_id, "recovery/validation")] == [0, 2, 4]
    assert [each.step for each in client.get_metric_history(run.info.run_id, "recovery/training")] == [1, 2, 3, 4]
    assert run.data.metrics["width/lorap/0.mlp.down_proj"] == 67
    assert "rank/lorap/0.mlp.down_proj" not in run.data.metrics
    assert {"figures/recovery.png"} <= {each.path for each in client.list_artifacts(run.info.run_id, "figures")}


def uri_of(lab: TinyProject) -> str:
    import yaml

    return str(yaml.safe_load((lab.root / "params.yaml").read_text())["tracking"]["uri"])


@pytest.mark.filterwarnings("default:.* is incomplete or damaged and was dropped:UserWarning")
@pytest.mark.nightly
def test_a_recovery_that_is_killed_goes_on_from_its_checkpoint_and_gives_the_same(
    lorap: Lab, tuned: Lab, tmp_path: Path, prefect_server: str
) -> None:
    lab = lorap[0].copy(tmp_path / "lab")
    died = """
import os, signal, sys
def strike(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("checkpoint-4/complete.json"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(strike)
"""
    killed = lab.finish(*METHOD, *RECOVERY, before=died, PREFECT_API_URL=prefect_server)
    assert killed.code == -9, killed
    (unfinished,) = (lab.root / "store" / "unfinished").iterdir()
    assert (unfinished / "checkpoint-2" / "complete.json").exists()
    outcome = lab.run(*METHOD, *RECOVERY)
    assert outcome.code == 0, outcome
    assert lab.records() == tuned[0].records()
    assert list((lab.root / "store" / "unfinished").iterdir()) == []


def instructions(lab: TinyProject, folder: Path) -> list[str]:
    rows = [{"instruction": f"Name the word after {n}.", "input": "", "output": f"bada {n}"} for n in range(40)]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    return [f"data.recovery.source={folder / 'alpaca.json'}", "data.recovery.to=1.0"]


@pytest.mark.filterwarnings("default:no validation was better:UserWarning")
def test_instructions_are_tuned_on_and_their_answers_are_what_is_scored(lorap: Lab, tmp_path: Path) -> None:
    lab = lorap[0].copy(tmp_path / "lab")
    model = lab.copy_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    given = [*instructions(lab, tmp_path), "data.recovery.form=instructions", "data.recovery.length=400"]
    given += [f"backbone.source={model}", "evaluation.baselines=[]"]
    outcome = lab.run(*METHOD, *RECOVERY, *given)
    assert outcome.code == 0, outcome
    (folder,) = lab.artifacts("examples")
    card = json.loads((folder / "card.json").read_text())
    assert 0 < card["scored"] < card["tokens"]


# What is refused


def broken(lab: TinyProject, folder: Path) -> list[str]:
    (folder / "alpaca.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    return [f"data.recovery.source={folder / 'alpaca.json'}", "data.recovery.form=instructions", "data.recovery.to=1.0"]


def given(*overrides: str) -> Callable[[TinyProject, Path], list[str]]:
    return lambda *_: list(overrides)


FAULTS: dict[str, tuple[Callable[[TinyProject, Path], list[str]], int, str]] = {
    "instructions without a field": (
        broken,
        3,
        r"Row 1 of .*alpaca\.json holds .*expected the texts instruction, input",
    ),
    "recovery on evaluation text": (
        given("data.recovery.from=0.4", "data.recovery.to=0.9"),
        3,
        "The recovery and validation texts overlap",
    ),
    "a batch that does not divide": (
        given("recovery.micro_batch=3"),
        2,
        r"recovery\.batch is 8, which does not divide",
    ),
    "float16 on a CPU": (given("recovery.precision=float16"), 2, r"recovery\.precision is float16 on cpu, which needs"),
    "a file that is not there": (
        given("data.recovery.source=/no/such.json", "data.recovery.form=instructions"),
        3,
        r"/no/such\.json cannot be read \(No such file\), expected a file of rows: check the path",
    ),
    "a baseline that is another one": (
        given("evaluation.baselines=[uniform,level1]"),
        2,
        r"evaluation\.baselines has uniform, which .* is the same as level1",
    ),
    "a method called as a baseline": (
        given("methods.uniform={}", "method=uniform"),
        2,
        "method is 'uniform': expected a name",
    ),
    "a method that is no sections": (given("methods.x=afm", "method=x"), 2, r"methods\.x is 'afm': expected sections"),
    "examples longer than the model": (
        given("data.recovery.length=256"),
        2,
        r"data\.recovery\.length is 256, expected",
    ),
    "a rate that explodes": (
        given("recovery.rate=1e30", "recovery.warmup=0.0"),
        4,
        r"loss is (nan|inf) at step \d, expected a finite number",
    ),
    "widths below one channel": (given("channels.keep_least=0.99", "ratios.compression=0.5"), 2, "0.5 is out of reach"),
    "ranks of a pruned model from its file": (
        lambda lab, folder: [
            "method=mgaa",
            "ranks.method=file",
            f"ranks.path={lab.root / 'allocation.json'}",
            "recovery.method=none",
        ],
        2,
        r"has pruned FFNs \(.* of width 67\), expected ranks for all matrices",
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_mistake_is_one_message_and_what_was_done_is_kept(fault: Any, lorap: Lab, tmp_path: Path) -> None:
    prepare, code, message = fault
    lab = lorap[0].copy(tmp_path / "lab")
    (lab.root / "allocation.json").write_text((lorap[0].root / "results" / "allocation.json").read_text())
    before = lab.records()
    outcome = lab.run(*METHOD, *RECOVERY, "evaluation.baselines=[]", *prepare(lab, tmp_path))
    assert outcome.code == code, outcome
    assert code == 4 or not outcome.executed.keys() - {"make_examples"}, "found before anything is computed"
    import re

    assert re.match(f"error: .*({message})", outcome.message), outcome.message
    assert outcome.message.count("\n") == 1
    assert lab.records().items() >= before.items()


def test_a_sweep_refuses_what_cannot_share_a_decomposition(lorap: Lab, tmp_path: Path) -> None:
    from flows.sweep import sweep

    lab = lorap[0].copy(tmp_path / "lab")
    assert "statistics.inputs is 'compressed'" in lab.run(*METHOD, flow=sweep).message
    dense = lab.run(*METHOD, "statistics.inputs=dense", flow=sweep)
    assert (dense.code, "channels.method is 'weighted', but flows.sweep compares" in dense.message) == (2, True)
