"""The main flow compresses a model that sees: calibrated on questions about images, asked before and after, and loaded by anyone."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from demo.scenes import CAPTION, TYPES, examples
from flows.parts.questions import BLIND
from flows.show import show
from tasks.artifacts.files import ANSWERS, CARD, backbone_record, read_table
from tasks.cache.artifact import MANIFEST, Artifact, Store
from tasks.config.parameters import load_parameters
from tests.support.laboratory import Outcome, TinyProject, runs
from tests.support.processes import ROOT
from tests.support.vision import BLOCKS, multimodal_model

pytestmark = pytest.mark.slow

Lab = tuple[TinyProject, Outcome]

ASKED, CALIBRATED, TRAINED, WINDOWS = 24, 32, 40, 8
ALONE = ("evaluation.baselines=[]",)
EVERYTHING = {
    "load_backbone": 1,
    "read_texts": 1,
    "read_questions": 1,
    "tokenize": 2,
    "encode_questions": 1,
    "calibrate": 1,
    "decompose": BLOCKS,
    "allocate_ratios": 2,
    "allocate_ranks": 2,
    "factorize": 2 * BLOCKS,
    "assemble": 2,
    "measure_perplexity": 6,
    "evaluate": 3,
    "answer": 3,
    "draw_figures": 1,
}
"""Executions of a first run with one baseline."""


@pytest.fixture(scope="module")
def laboratory(empty: TinyProject, tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> TinyProject:
    """A laboratory whose case is `vision`, of a random model and few data, where nothing has run yet."""
    lab = empty.copy(tmp_path_factory.mktemp("vision") / "laboratory", store=False)
    values = yaml.safe_load((lab.root / "params.yaml").read_text())
    values["case"], vision = "vision", values["cases"]["vision"]
    vision["backbone"]["source"] = str(multimodal_model())
    vision["data"]["calibration"]["samples"] = CALIBRATED
    vision["data"]["recovery"]["samples"] = TRAINED
    vision["data"]["questions"][0]["samples"] = ASKED
    for name in ("validation", "evaluation"):
        values["data"][name]["samples"] = WINDOWS
    (lab.root / "params.yaml").write_text(yaml.safe_dump(values))
    return lab


@pytest.fixture(scope="module")
def seen(laboratory: TinyProject) -> Lab:
    """The laboratory after a run; look, and copy it."""
    return laboratory, laboratory.run()


@pytest.fixture(scope="module")
def tracked(seen: Lab) -> Any:
    """That run in MLflow."""
    return runs(seen[0], "compress")[0]


@pytest.fixture
def done(seen: Lab, tmp_path: Path) -> TinyProject:
    """A laboratory of the test's own after the run."""
    return seen[0].copy(tmp_path / "done")


def result(lab: TinyProject, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.root / "results" / "vision" / name).read_text())
    return found


def digests(lab: TinyProject, *kinds: str) -> dict[str, set[str]]:
    return {kind: {folder.name for folder in lab.artifacts(kind)} for kind in kinds}


# What is executed, and what is left behind


def test_the_first_run_executes_every_step_and_the_second_nothing(seen: Lab, done: TinyProject) -> None:
    _, outcome = seen
    assert outcome == Outcome(0, "", EVERYTHING)
    assert done.run() == Outcome(0, "", {})
    assert result(done, "metrics.json")["run"]["reused"] == sum(EVERYTHING.values())


def test_the_metrics_have_the_answers_by_type_of_every_model(seen: Lab) -> None:
    found = result(seen[0], "metrics.json")
    assert found.keys() == {"models", "card", "run", "comparison"}
    assert list(found["models"]) == ["dense", "uniform", "mgaa"]
    drawn = examples("test", ASKED, 0, (*TYPES, CAPTION))
    types = Counter(each.type for each in drawn)
    for model in found["models"].values():
        given = model["questions"]["scenes"]
        assert {kind: each["n"] for kind, each in given["types"].items()} == {kind: types[kind] for kind in TYPES}
        assert (given["n"], given["captions"]) == (ASKED - types[CAPTION], types[CAPTION])
        assert given["accuracy"] * given["n"] == pytest.approx(
            sum(each["accuracy"] * each["n"] for each in given["types"].values())
        )
        assert given["caption_perplexity"] > 1
        assert not given.keys() & {"answers", "card", "caption_losses", "caption_counts"}
    for each in found["comparison"]["scenes"].values():
        assert each["low"] <= each["value"] <= each["high"]
    accuracy = {name: model["questions"]["scenes"]["accuracy"] for name, model in found["models"].items()}
    above = found["comparison"]["scenes"]["mgaa"]["value"]
    assert above == pytest.approx(accuracy["mgaa"] - accuracy["uniform"])


def test_the_card_tells_what_was_measured_on_and_how_was_asked(seen: Lab) -> None:
    card = result(seen[0], "metrics.json")["card"]
    (tokens,) = [
        json.loads((folder / CARD).read_text())
        for folder in seen[0].artifacts("tokens")
        if "image_tokens" in json.loads((folder / CARD).read_text())
    ]
    assert card["calibration"] == {
        "tokens": tokens["tokens"],
        "image_tokens": 16 * CALIBRATED,
        "warning": None,
    }
    asked = card["questions"]["scenes"]
    assert (asked["section"], asked["decoding"], asked["max_new_tokens"]) == ("questions.scenes", "greedy", 16)
    assert asked["image_tokens"] == {"min": 16, "max": 16}


def test_cosines_of_image_and_text_tokens_are_told_apart(seen: Lab) -> None:
    for each in result(seen[0], "allocation.json")["mgaa"]["sublayers"].values():
        low, high = sorted((each["cosine_image"], each["cosine_text"]))
        assert low <= each["cosine"] <= high


def test_results_lie_in_folders_of_their_own(seen: Lab) -> None:
    root = seen[0].root
    assert {path.name for path in (root / "results").iterdir()} == {"vision"}
    assert {path.name for path in (root / "models").iterdir()} == {"compressed-vlm"}
    figures = {path.name for path in (root / "results" / "vision" / "figures").glob("*.png")}
    assert "answers_scenes.png" in figures


def test_the_screen_tells_accuracies_and_how_to_load_the_model(seen: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    show(load_parameters(seen[0].root / "params.yaml"))
    told = capsys.readouterr().out
    models = result(seen[0], "metrics.json")["models"]
    for label, name in (("dense", "dense"), ("MGAA", "mgaa")):
        (row,) = [line for line in told.splitlines() if line.strip().startswith(label)]
        assert f"{models[name]['questions']['scenes']['accuracy']:.3f} ± " in row
    assert "Accuracy on scenes above uniform: MGAA" in told
    assert 'AutoModelForImageTextToText.from_pretrained("models/compressed-vlm")' in told
    assert "Warning" not in told


GENERATE = """if True:
    import sys, mgaa
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    model, processor = (auto.from_pretrained(sys.argv[1]) for auto in (AutoModelForImageTextToText, AutoProcessor))
    shown = {"type": "image", "image": Image.open(sys.argv[2])}
    turn = {"role": "user", "content": [shown, {"type": "text", "text": sys.argv[3]}]}
    inputs = processor.apply_chat_template(
        [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    print(repr(processor.decode(ids, skip_special_tokens=True).strip()))
"""


def test_the_checkpoint_answers_in_a_new_process_what_it_answered_in_the_run(seen: Lab) -> None:
    lab, _ = seen
    store, folder = Store(lab.root / "store"), lab.root / "models" / "compressed-vlm"
    digest = json.loads((folder / MANIFEST).read_text())["digest"]
    (answers,) = [
        Artifact("answers", path.name)
        for path in lab.artifacts("answers")
        if json.loads((path / MANIFEST).read_text())["inputs"]["model"]["digest"] == digest
    ]
    (questions,) = lab.artifacts("questions")
    first = read_table(store, answers, ANSWERS)["answers"][0]
    image = questions / "questions.scenes" / "images" / first["image"]
    command = [sys.executable, "-c", GENERATE, str(folder), str(image), first["question"]]
    made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert made.stdout.strip() == repr(first["answer"])


def test_mlflow_has_accuracies_cosines_the_figure_and_the_lineage(seen: Lab, tracked: Any) -> None:
    from mlflow import MlflowClient

    metrics, models = tracked.data.metrics, result(seen[0], "metrics.json")["models"]
    for name, model in models.items():
        given = model["questions"]["scenes"]
        assert metrics[f"questions/{name}/scenes/accuracy"] == given["accuracy"]
        assert metrics[f"questions/{name}/scenes/types/count/accuracy"] == given["types"]["count"]["accuracy"]
    sublayers = result(seen[0], "allocation.json")["mgaa"]["sublayers"]
    for name, each in sublayers.items():
        for kind in ("image", "text"):
            assert metrics[f"cosine/{kind}/{name}"] == each[f"cosine_{kind}"]
    assert {f"above_uniform/mgaa/scenes/{key}" for key in ("value", "low", "high")} <= metrics.keys()
    assert tracked.data.params["case"] == "vision"
    for stage in ("questions", "answers.dense", "answers.uniform", "answers.mgaa"):
        assert tracked.data.tags[f"artifact.{stage}"]
    client = MlflowClient(yaml.safe_load((seen[0].root / "params.yaml").read_text())["tracking"]["uri"])
    figures = {each.path for each in client.list_artifacts(tracked.info.run_id, "figures")}
    assert {"figures/answers_scenes.png", "figures/answers_scenes.svg"} <= figures
    lineage = json.loads(Path(client.download_artifacts(tracked.info.run_id, "lineage.json")).read_text())
    for kind in ("answers", "questions"):
        assert {name for name in lineage if name.startswith(f"{kind}/")} == {
            f"{kind}/{digest}" for digest in digests(seen[0], kind)[kind]
        }


# However it is held and shared


@pytest.mark.nightly
def test_a_streamed_run_on_two_workers_leaves_the_artifacts_of_one_in_memory(seen: Lab, tmp_path: Path) -> None:
    kinds = ("backbone", "questions", "tokens", "statistics", "spectra", "factors", "checkpoint", "answers", "metrics")
    lab = seen[0].copy(tmp_path / "streamed", store=False)
    outcome = lab.run("backbone.stream=always", "statistics.shards=2")
    assert (outcome.code, outcome.message) == (0, "")
    assert (outcome.executed["calibrate_share"], outcome.executed["merge_shares"]) == (2, 1)
    assert digests(lab, *kinds) == digests(seen[0], *kinds)


# What is asked for otherwise


def test_a_calibration_on_text_is_warned_of_in_the_card_and_on_the_screen(
    done: TinyProject, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    text = yaml.safe_load((done.root / "params.yaml").read_text())["data"]["calibration"]["source"]
    given = ["data.calibration.form=text", f"data.calibration.source={text}"]
    outcome = done.run(*given, *ALONE)
    assert outcome.code == 0
    assert f"sees, but is {BLIND}: set data.calibration.form=questions" in caplog.text
    assert outcome.executed["read_texts"] == outcome.executed["calibrate"] == 1
    assert "encode_questions" not in outcome.executed
    card = result(done, "metrics.json")["card"]["calibration"]
    assert (card["image_tokens"], card["warning"]) == (0, BLIND)
    assert not any("cosine_image" in each for each in result(done, "allocation.json")["mgaa"]["sublayers"].values())
    show(load_parameters(done.root / "params.yaml", given))
    assert f"Warning: {BLIND}." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "asking"),
    [
        ((), r"data.questions \(scenes\)"),
        (("data.questions=[]",), "data.calibration.form"),
    ],
)
def test_a_model_that_does_not_see_is_not_asked(
    laboratory: TinyProject, tmp_path: Path, overrides: tuple[str, ...], asking: str
) -> None:
    lab = laboratory.copy(tmp_path / "blind", store=False)
    outcome = lab.run(f"backbone.source={ROOT / 'models' / 'demo'}", *overrides)
    assert (outcome.code, outcome.executed) == (2, {"load_backbone": 1})
    assert re.search(
        rf"{asking} asks about images, but .*demo is a llama, which does not see: leave it", outcome.message
    )


def test_lorap_compresses_the_decoder_block_after_block(done: TinyProject) -> None:
    outcome = done.run("method=lorap", *ALONE)
    assert (outcome.code, outcome.message) == (0, "")
    assert (outcome.executed["compress_block"], outcome.executed["answer"]) == (BLOCKS, 1)
    model = result(done, "metrics.json")["models"]["lorap"]
    assert model["compression"] >= 0.2
    assert model["questions"]["scenes"]["n"] == 20
    assert result(done, "metrics.json")["comparison"] == {}


def test_the_tower_and_the_projector_are_compressed_where_asked_for(done: TinyProject) -> None:
    outcome = done.run("backbone.parts=[decoder,vision,projector]", *ALONE)
    assert (outcome.code, outcome.message) == (0, "")
    backbone = Artifact(
        "backbone",
        json.loads((done.root / "models/compressed-vlm" / MANIFEST).read_text())["inputs"]["backbone"]["digest"],
    )
    record = backbone_record(Store(done.root / "store"), backbone)
    assert record["parts"] == ["decoder", "vision", "projector"]
    assert record["blocks"] > BLOCKS + 1
    before, after = (parameters_of(each) for each in (multimodal_model(), done.root / "models" / "compressed-vlm"))
    for part in PLACES:
        assert after[part] < before[part], part
    assert after["rest"] == before["rest"]
    assert result(done, "metrics.json")["models"]["mgaa"]["compression"] >= 0.2


PLACES = ("vision_tower", "multi_modal_projector", ".layers.")
"""What the names of tensors hold in the tower, in the projector, and in the decoder's blocks, looked for in this order."""


def parameters_of(folder: Path) -> Counter[str]:
    """Numbers in the files of a model, by its parts."""
    found: Counter[str] = Counter({"rest": 0})
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                part = next((part for part in PLACES if part in name), "rest")
                found[part] += math.prod(file.get_slice(name).get_shape())
    return found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "method=bolaco",
            r"backbone.parts is .*, but with search.method=gp only the ranks of the decoder are varied",
        ),
        (
            "statistics.inputs=compressed",
            "backbone.parts is .*, but with statistics.inputs=compressed only the decoder",
        ),
        (
            "channels.method=weighted",
            "backbone.parts is .*, but with channels.method=weighted only the FFNs of the decoder",
        ),
    ],
)
def test_the_tower_is_refused_where_the_method_is_for_the_decoder_alone(
    laboratory: TinyProject, tmp_path: Path, override: str, message: str
) -> None:
    outcome = laboratory.copy(tmp_path / "refused", store=False).run("backbone.parts=[decoder,vision]", override)
    assert (outcome.code, outcome.executed) == (2, {})
    assert re.search(message, outcome.message)
