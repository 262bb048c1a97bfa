"""The audit report says what the results and the manifests say, needs nothing beside itself, and is a function of them."""

import math
import re
import shutil
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tasks.cache import environment
from tasks.cache.artifact import Artifact, Store
from tasks.config.parameters import load_parameters
from tasks.figures import run_figures
from tasks.figures.style import figure_style
from tasks.record.lineage import describe_lineage, full_name
from tasks.results import lineage_tree, report
from tasks.results.model_card import escape_code, escape_markdown
from tasks.results.parameter_changes import changed_parameters, defaults, format_command
from tasks.results.rebuild_report import restore_subject
from tests.support.finished import Finished, finished_run

VOID = {"meta", "img", "br", "hr"}
MEGABYTE = 1_000_000


class Page(HTMLParser):
    """What is in a page: its elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def subject_of(run: Finished) -> report.Subject:
    """What the report of the finished run is about."""
    return restore_subject(run.store, run.record, blind="")


@pytest.fixture(scope="module")
def run() -> Finished:
    return finished_run()


@pytest.fixture(scope="module")
def subject(run: Finished) -> report.Subject:
    return subject_of(run)


@pytest.fixture(scope="module")
def html(run: Finished) -> str:
    """The page that the run left."""
    return (run.parameters.results / report.PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


# What it says


def test_every_number_of_the_models_is_there(run: Finished, page: Page) -> None:
    for model in run.published["metrics"]["models"].values():
        for shown in (f"{model['parameters']:,}", f"{model['perplexity']:,.2f}", f"{model['bits_per_byte']:.4f}"):
            assert shown in page.text


def test_every_rank_energy_and_ratio_is_there(run: Finished, page: Page) -> None:
    for allocation in run.published["allocation"].values():
        for matrix in allocation["matrices"].values():
            rank = "dense" if matrix["rank"] is None else matrix["rank"]
            share = 100 * matrix["parameters"] / (matrix["m"] * matrix["n"])
            assert f"{rank}{share:.1f}\N{NO-BREAK SPACE}%{matrix['energy']:.5f}{matrix['error']:.4f}" in page.text
        for sublayer, each in run.published["allocation"]["mgaa"]["sublayers"].items():
            assert f"{sublayer}{each['cosine']:.4f}{100 * each['ratio']:.1f}\N{NO-BREAK SPACE}%" in page.text


def test_every_artifact_is_there_with_its_digest_task_and_seconds(subject: report.Subject, page: Page) -> None:
    behind = describe_lineage(subject.store, [each for stage in subject.artifacts for each in subject.of(stage)])
    assert len(behind) > 20
    for each, told in behind.items():
        assert f"{told['task']}{each}{told['seconds']:,.2f}" in page.text.replace("\n", "")


def test_every_figure_of_the_run_is_there_with_words_for_those_who_do_not_see_it(
    subject: report.Subject, page: Page
) -> None:
    images = page.all("img")
    assert len(images) == len(list(subject.store.folder(subject.of("figures")[0]).glob("*.svg"))) == 5
    assert len({image["alt"] for image in images}) == 5
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in images)


def test_samples_stand_side_by_side(run: Finished, subject: report.Subject, page: Page) -> None:
    shown = report.samples(subject)
    assert len(shown["texts"]) == run.parameters.evaluation.samples.number
    for text in shown["texts"]:
        assert text["said"].keys() == {"dense", "uniform", "mgaa"}
        assert text["said"]["dense"]["equal"] == text["said"]["dense"]["tokens"]
        assert all(part in page.text for part in (text["prompt"], text["reference"]))


def test_the_environment_is_that_of_the_run(subject: report.Subject, page: Page) -> None:
    assert subject.origin["code"] in page.text
    assert all(
        f"{package} {version}" in page.text for package, version in subject.origin["versions"].items() if version
    )


def test_the_sources_are_there_by_their_digest(run: Finished, page: Page) -> None:
    backbone = run.store.manifest(run.results.backbone)["parameters"]["files"]
    texts = run.store.manifest(run.results.texts)["parameters"]["content"]
    for files in (backbone, *texts.values()):
        for file, digest in files.items():
            assert f"{file}{digest}" in page.text


# The command


def test_the_command_names_what_the_project_does_not_set(run: Finished) -> None:
    flat = load_parameters(environment.ROOT / "params.yaml").flat()
    assert changed_parameters(flat, None) == {}
    assert format_command(flat, {}).split() == [
        "python",
        "-m",
        "flows.compress",
        "\\",
        "case=language",
        "\\",
        "method=mgaa",
    ]
    changes = changed_parameters(run.parameters.flat(), None)
    assert {key for key in changes if not key.startswith("data.")} == {"backbone.source"}
    assert f"'backbone.source={run.parameters.backbone.source}'" in format_command(run.parameters.flat(), changes)


def test_without_the_commit_the_checkout_tells_what_the_project_sets() -> None:
    assert defaults("language", "mgaa", "0" * 40) == defaults("language", "mgaa", None)


# Its form


def test_nothing_is_fetched_and_no_script_runs(page: Page) -> None:
    assert page.open == []
    assert page.all("script", "link", "iframe", "object") == []
    assert all(not str(each.get("href", "#")).startswith(("http", "//")) for each in page.all("a"))
    (policy,) = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_headings_are_in_order_and_tables_have_headers(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    assert {each["scope"] for each in page.all("th")} == {"row", "col"}


def test_every_link_leads_to_a_place_in_the_page_and_no_place_has_two_names(page: Page) -> None:
    places = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(places) == len(set(places))
    assert {str(each["href"]).removeprefix("#") for each in page.all("a")} <= set(places)


def test_what_users_wrote_is_text_and_never_markup(subject: report.Subject) -> None:
    parameters = {**subject.parameters, "data.evaluation.source": "<script>alert(1)</script>"}
    shown = report.render_page(replace(subject, parameters=parameters))
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_it_is_a_function_of_the_store_and_the_record(subject: report.Subject, html: str) -> None:
    assert report.render_page(subject) == html


@pytest.mark.slow
def test_a_model_of_32_blocks_has_a_page_below_three_megabytes(
    run: Finished, subject: report.Subject, tmp_path: Path
) -> None:
    allocations = {model: stretched(allocation, 32) for model, allocation in subject.allocations.items()}
    curves = {key: smooth(each["energy"]) for key, each in allocations["mgaa"]["matrices"].items()}
    assert len(curves) == 224
    store = Store(Path(shutil.copytree(run.store.path, tmp_path / "store")))
    with store.draft_folder("figures") as out, figure_style():
        for name_, figure in {
            "ranks": run_figures.ranks(allocations),
            "sublayers": run_figures.sublayers(allocations),
            "energies": run_figures.energies(allocations, curves),
            "errors": run_figures.errors(allocations),
        }.items():
            figure.savefig(out / f"{name_}.svg", metadata={"Date": None, "Creator": None})
        told = {
            key: each for key, each in store.manifest(run.figures).items() if key not in ("files", "kind", "digest")
        }
        drawn = store.seal(out, "figures", told)
    artifacts = {**subject.artifacts, "figures": drawn}
    shown = report.render_page(replace(subject, store=store, allocations=allocations, artifacts=artifacts))
    assert all(f">{block}.attention<" in shown for block in range(32))
    assert len(shown.encode()) < 3 * MEGABYTE


def smooth(energy: float) -> tuple[list[float], list[float]]:
    """The curve of a wide matrix that keeps this energy at four fifths of its parameters."""
    power = math.log(1 - energy + 1e-9) / math.log(0.2)
    shares = [rank / 2048 for rank in range(2049)]
    return shares, [1 - (1 - share) ** power for share in shares]


def stretched(allocation: dict[str, Any], blocks: int) -> dict[str, Any]:
    """An allocation with the first block as often."""
    first = [matrix for matrix in allocation["matrices"].values() if matrix["block"] == 0]
    inside = {key.partition(".")[2]: each for key, each in allocation["sublayers"].items() if key.startswith("0.")}
    return {
        **allocation,
        "sublayers": {f"{block}.{key}": each for block in range(blocks) for key, each in inside.items()},
        "matrices": {
            f"{block}.{matrix['matrix']}": {**matrix, "block": block} for block in range(blocks) for matrix in first
        },
    }


# Ancestry


def test_the_tree_tells_everything_behind_a_checkpoint_once(run: Finished) -> None:
    checkpoint = run.results.models["mgaa"].checkpoint
    behind = describe_lineage(run.store, [checkpoint])
    told: list[str] = []

    def walk(branch: lineage_tree.Branch) -> None:
        told.extend(branch.names)
        for below in branch.inputs:
            walk(below)

    walk(lineage_tree.build_tree(behind, [full_name(checkpoint)]))
    assert sorted(told) == sorted(behind)


def test_efforts_add_up_to_those_of_the_manifests(run: Finished) -> None:
    behind = describe_lineage(run.store, [run.results.models["mgaa"].checkpoint])
    efforts = {each["task"]: each for each in lineage_tree.efforts(run.store, behind)}
    manifests = [run.store.manifest(Artifact(*each.split("/"))) for each in behind]
    assert sum(each["count"] for each in efforts.values()) == len(behind)
    for task, effort in efforts.items():
        own = [each for each in manifests if each["task"] == task]
        assert effort["seconds"] == pytest.approx(sum(each["seconds"] for each in own))
        assert effort["peak_rss"] == max(each["peak_rss"] for each in own)


# The model card


def test_the_model_card_is_that_of_the_checkpoint_and_the_hub_can_read_it(run: Finished, page: Page) -> None:
    text = (run.parameters.folder / "models" / "compressed" / "README.md").read_text(encoding="utf-8")
    card, model = ModelCard(text), run.published["metrics"]["models"]["mgaa"]
    assert (card.data.base_model, card.data.library_name, card.data.pipeline_tag) == (
        "model",
        "mgaa",
        "text-generation",
    )
    measured = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert measured == {"perplexity": pytest.approx(model["perplexity"], abs=1e-4)}
    assert run.results.models["mgaa"].checkpoint.digest in card.text
    assert str(run.parameters.folder) not in text
    assert 'from_pretrained("compressed")' in page.text


def test_names_in_the_model_card_are_shown_and_not_read() -> None:
    from markdown_it import MarkdownIt

    hostile = "a|b `c` <script>x</script> [d](http://e) **f** _g_\n# h"
    html = MarkdownIt("commonmark", {"html": True}).render(f"# {escape_markdown(hostile)}")
    assert html == f"<h1>{escape(' '.join(hostile.split()), quote=False)}</h1>\n"
    assert MarkdownIt().render(f"`{escape_code(hostile)}`").count("<code>") == 1
    assert escape_markdown("SmolLM2-135M_v1.0") == "SmolLM2-135M_v1.0"
