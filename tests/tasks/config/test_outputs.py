"""Outputs of flows are refused before any work where they would replace what is read, kept, or somebody else's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mgaa.checkpoints.ownership import MARK
from mgaa.errors import ResourceError, UsageError
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import place_files, publish_file, replace_folder
from tasks.cache.manifest import MANIFEST, RECORD, format_json
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters, load_parameters
from tasks.results.publish import outputs
from tests.support.processes import ROOT

Make = Callable[..., Parameters]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The parameters of a project with a model, a text and a store."""
    for name in ("models/mine", "texts", "store", ".git", ".dvc"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models/mine/config.json").write_text("{}")
    (tmp_path / "texts/a.txt").write_text("a")
    (tmp_path / "models/link").symlink_to("mine")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["backbone"]["source"] = "models/mine"
    for name in ("calibration", "validation", "evaluation", "recovery"):
        values["data"][name]["source"] = "texts/a.txt"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: load_parameters(Path("params.yaml"), overrides)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("output.checkpoint=models/mine", "is backbone.source"),
        ("output.checkpoint=models/mine/", "is backbone.source"),
        ("output.checkpoint=./models/mine", "is backbone.source"),
        ("output.checkpoint=models/link", "is backbone.source"),
        ("output.checkpoint=models/mine/out", "lies in backbone.source"),
        ("output.checkpoint=models", "holds backbone.source"),
        ("output.checkpoint=texts", "holds data.calibration.source"),
        ("output.checkpoint=params.yaml", "is the file of the parameters"),
        ("output.checkpoint=store", "is the store"),
        ("output.checkpoint=store/out", "lies in the store"),
        ("output.checkpoint=.git/out", "lies in the repository"),
        ("output.checkpoint=.dvc", "is DVC's folder"),
        ("output.checkpoint=results", "is output.results"),
        ("output.checkpoint=results/figures", "is output.results"),
        ("output.results=models/mine", "is backbone.source"),
        ("output.results=models/link/out", "lies in backbone.source"),
        ("output.results=models/compressed", "is output.results"),
        ("output.results=models/compressed/results", "holds output.results"),
        ("output.results=store", "is the store"),
        ("output.results=.git", "is the repository"),
        ("store.path=models/mine", "is backbone.source"),
        ("store.path=models/link/store", "lies in backbone.source"),
    ],
)
def test_an_output_is_apart_from_what_is_read_and_kept(given: str, said: str, make: Make) -> None:
    params = make(given)
    with pytest.raises(
        UsageError, match=rf"(output|store)\..* would be written to .*, which {said}.*: set it to a folder apart"
    ):
        check_outputs(params, *outputs(params))


@pytest.mark.parametrize("target", ["/", "~", "."])
def test_a_link_does_not_lead_an_output_to_the_home_folder_or_the_project(target: str, make: Make) -> None:
    Path("models/out").symlink_to(Path(target).expanduser().absolute())
    params = make("output.checkpoint=models/out")
    with pytest.raises(UsageError, match=r"would be written to .*, which (is|holds) "):
        check_outputs(params, *outputs(params))


@pytest.mark.parametrize("data", ["texts", "texts/a.txt"])
def test_prepared_texts_are_apart_from_the_texts(data: str, make: Make) -> None:
    params = make(f"data.validation.source={data}")
    for place in ("texts", "texts/prepared" if data == "texts" else "texts/a.txt"):
        with pytest.raises(UsageError, match=r"the folder .* (is|holds|lies in) data\."):
            check_outputs(params, Output("the folder of the texts", Path(place)))


def test_a_file_that_is_read_is_no_output(make: Make) -> None:
    params = make("ranks.objective=latency", "ranks.profile=texts/a.txt", "profile.output=texts/a.txt")
    for key, path in (("profile.output", Path("texts/a.txt")), ("output.results", Path("params.yaml"))):
        with pytest.raises(UsageError, match=rf"{key} would be written to .*, which is "):
            check_outputs(params, Output(key, path.parent, [path.name]))


def test_folders_and_files_of_somebody_else_are_named_with_their_parameter(make: Make) -> None:
    params = make()
    Path("models/compressed").mkdir()
    Path("models/compressed/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"^output.checkpoint: .* holds notes.txt, which mgaa did not write"):
        check_outputs(params, *outputs(params))
    Path("models/compressed/notes.txt").unlink()
    Path("results").mkdir()
    Path("results/notes.txt").write_text("mine")
    check_outputs(params, *outputs(params))
    Path("results/metrics.json").write_text("mine")
    with pytest.raises(UsageError, match=r"^output.results: .* holds metrics.json, which mgaa did not write"):
        check_outputs(params, *outputs(params))
    Path("results/metrics.json").unlink()
    Path("results/figures").write_text("a file")
    with pytest.raises(ResourceError, match="figures is not a folder"):
        check_outputs(params, *outputs(params))


def exported(store: Store, target: Path) -> Artifact:
    """What an earlier version exported: an artifact with its manifest and cards, and no mark."""
    with store.draft_folder("checkpoint") as out:
        (out / "model.txt").write_text("weights")
        artifact = store.seal(out, "checkpoint", {})
    store.export(artifact, target, {"README.md": b"a card", "evaluation.json": b"{}"})
    (target / MARK).unlink()
    return artifact


def test_what_an_earlier_version_exported_may_be_replaced_but_nothing_beside_it(tmp_path: Path) -> None:
    store, target = Store(tmp_path / "store"), tmp_path / "models" / "compressed"
    artifact = exported(store, target)
    store.export(artifact, target)
    assert sorted(path.name for path in target.iterdir()) == [MARK, MANIFEST, "model.txt"]
    exported(store, target)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds notes.txt"):
        store.export(artifact, target)
    (target / "notes.txt").unlink()
    (target / "model.txt").write_text("tuned")
    with pytest.raises(UsageError, match=r"holds model.txt"):
        store.export(artifact, target)


def test_results_of_an_earlier_version_may_be_replaced(tmp_path: Path) -> None:
    results = tmp_path / "results" / "vision"
    (results / "plots").mkdir(parents=True)
    published = {}
    for name in ("metrics.json", "allocation.json", "plots/sizes.csv"):
        (results / name).write_text(name)
        published[f"results/vision/{name}"] = sha256(results / name)
    (results / RECORD).write_bytes(
        format_json({"flow": "compress", "key": "", "artifacts": {}, "published": published})
    )
    (results / "sweep.csv").write_text("point,perplexity\n")
    (results / "sweep.png").write_text("a figure")
    with replace_folder(results / "plots") as out:
        (out / "sizes.csv").write_text("new")
    for name in ("metrics.json", RECORD, "sweep.csv", "sweep.png"):
        publish_file(results / name, b"new")
    (results / "sensitivity.csv").write_text("mine, with the header type,compression,removed,")
    with pytest.raises(UsageError, match=r"holds sensitivity.csv"):
        publish_file(results / "sensitivity.csv", b"new")
    (results / "allocation.json").write_text("edited")
    with pytest.raises(UsageError, match=r"holds allocation.json"):
        publish_file(results / "allocation.json", b"new")


def test_results_that_dvc_checked_out_may_be_replaced(tmp_path: Path) -> None:
    """The mark of `results` is no out of DVC, so files of another revision lie beside it."""
    results = tmp_path / "results"
    results.mkdir()
    publish_file(results / "metrics.json", b"of this revision")
    publish_file(results / RECORD, b"of this revision")
    (results / "metrics.json").write_bytes(b"of another")
    published = {"results/metrics.json": sha256(results / "metrics.json")}
    (results / RECORD).write_bytes(
        format_json({"flow": "compress", "key": "", "artifacts": {}, "published": published})
    )
    for name in ("metrics.json", RECORD):
        publish_file(results / name, b"new")
        assert (results / name).read_bytes() == b"new"


def test_a_users_files_among_the_results_stay(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "notes.txt").write_text("mine")
    for text in ("first", "second"):
        with place_files(tmp_path / "results") as out:
            (out / "metrics.json").write_text(text)
    assert (tmp_path / "results" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "results" / "metrics.json").read_text() == "second"


def sha256(path: Path) -> str:
    from mgaa.checkpoints.ownership import fresh_digest

    return fresh_digest(path)
