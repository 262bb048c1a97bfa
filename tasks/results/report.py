"""The audit report: everything there is to know about a run, as one self-contained HTML page.

The page is a function of the store and of the run's record: it has no clock, so rendering it again gives the same bytes, and
times and memory are those of the steps, whenever they ran. Figures are those of the artifact `figures`; no script runs, and
the page allows no request (its Content-Security-Policy). The words are in tasks/results/templates/report.html, the styles in report.css.
"""

import base64
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.files import ANSWERS, SAMPLES, backbone_record, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.figures.allocation_rows import choose_pair
from tasks.figures.style import label_of, short_names
from tasks.record.lineage import describe_lineage, full_name
from tasks.results import lineage_tree
from tasks.results.model_card import model_card, quantization_of
from tasks.results.parameter_changes import changed_parameters, format_command, format_value, relevant_parameters

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
DENSE, UNIFORM, UNRECOVERED = "dense", "uniform", "unrecovered"
DISAGREEMENTS = 24
"""Maximum number of questions that are shown with their answers."""
ALTERNATIVES = {
    "ranks": "Heat map of the rank of every matrix in every block, of the method and of the baseline",
    "sublayers": "Cosine of the residual stream before and after every sublayer, and the compression ratio of every sublayer, by block",
    "energies": "Kept energy against the kept share of parameters, a panel for each kind of matrix and a line for each block",
    "errors": "Relative output error of every layer by block, the method against the baseline",
    "sizes": "Perplexity against megabytes on disk, every model with its standard error",
    "recovery": "Training and validation loss of the recovery by optimizer step",
}
"""Alternative text of each figure."""


@dataclass(frozen=True)
class Subject:
    """Everything that a report is rendered from.

    Attributes:
        parameters: all of the run, by dotted key.
        artifacts: by stage, as in `tasks.results.publish.Results.artifacts`, with `figures`.
        keys: cache keys by which the run obtained them.
        metrics, allocations: the content of `results/metrics.json` and `results/allocation.json`.
        origin: `git`, `versions` and `device` of the run, and the digest of its `code`.
    """

    store: Store
    parameters: Mapping[str, Any]
    artifacts: Mapping[str, Artifact | list[Artifact]]
    keys: Mapping[Artifact, str]
    metrics: Mapping[str, Any]
    allocations: Mapping[str, Any]
    origin: Mapping[str, Any]

    @property
    def method(self) -> str:
        """Name of the run's method."""
        return str([*self.metrics["models"]][-1])

    def of(self, stage: str) -> list[Artifact]:
        """Artifacts of a stage."""
        given = self.artifacts.get(stage, [])
        return [given] if isinstance(given, Artifact) else given

    @property
    def backbone(self) -> dict[str, Any]:
        """Record of the backbone."""
        return backbone_record(self.store, self.of("backbone")[0])


def render_page(subject: Subject) -> str:
    """Render the report as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    html: str = environment.get_template(PAGE).render(page_content(subject))
    return html


def card_of(subject: Subject) -> str:
    """Model card of the run's checkpoint."""
    (checkpoint,) = subject.of(f"checkpoint.{subject.method}")
    commit = subject.store.manifest(checkpoint)["git"]["commit"]
    given = subject.metrics, subject.parameters, subject.backbone
    return model_card(*given, checkpoint=checkpoint.digest, commit=commit)


def shown_card(text: str) -> dict[str, Any]:
    """Split a model card into the front matter, verbatim, and the body as HTML, with its headings two levels down to fit the page."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    _, front, body = text.split("---\n", 2)
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(body)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 2}"
        elif token.type == "th_open":
            token.attrSet("scope", "col")
    return {"front": front, "body": Markup(markdown.renderer.render(tokens, markdown.options, {}))}


def page_content(subject: Subject) -> dict[str, Any]:
    """Variables of the template."""
    metrics, store = subject.metrics, subject.store
    changes = changed_parameters(subject.parameters, subject.origin["git"]["commit"])
    stages = {stage: subject.of(stage) for stage in subject.artifacts}
    lineage = describe_lineage(store, [each for those in stages.values() for each in those], subject.keys)
    shown = choose_pair(subject.allocations)
    return {
        "title": f"{Path(subject.backbone['source']).name} compressed by {label_of(subject.method)}",
        "method": subject.method,
        "models": metrics["models"],
        "card": metrics["card"],
        "comparison": metrics.get("comparison", {}),
        "backbone": subject.backbone,
        "quantization": quantization_of(subject.backbone),
        "parameters": relevant_parameters(subject.parameters),
        "changes": changes,
        "command": format_command(subject.parameters, changes),
        "losses": losses(metrics["models"]),
        "budgets": subject.allocations,
        "shown": shown,
        "short": short_names([each["matrix"] for each in next(iter(shown.values()))["matrices"].values()]),
        "figures": embed_figures(subject),
        "samples": samples(subject),
        "answers": differing_answers(subject),
        "stage_of": {full_name(each): stage for stage, those in stages.items() for each in those},
        "behind": lineage,
        "tree": lineage_tree.build_tree(
            lineage, [full_name(each) for each in subject.of(f"checkpoint.{subject.method}")]
        ),
        "efforts": lineage_tree.efforts(store, lineage),
        "sources": lineage_tree.sources(lineage),
        "origins": lineage_tree.origins(lineage),
        "origin": subject.origin,
        "model_card": shown_card(card_of(subject)),
        "checkpoint": metrics["models"][subject.method]["checkpoint"],
    }


def losses(models: Mapping[str, Any]) -> dict[str, float]:
    """Increase of every compressed model's log-perplexity over the dense model's, in nats."""
    dense = models[DENSE]["perplexity"]
    return {each: math.log(found["perplexity"] / dense) for each, found in models.items() if each != DENSE}


def embed_figures(subject: Subject) -> dict[str, dict[str, str]]:
    """Figures of the run by name: the vector file as a `uri` that contains all of it, and its alternative text."""
    folder = subject.store.folder(subject.of("figures")[0])
    return {
        path.stem: {
            "uri": f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}",
            "alternative": ALTERNATIVES.get(path.stem, "Questions about images, with the answers before and after"),
        }
        for path in sorted(folder.glob("*.svg"))
    }


def samples(subject: Subject) -> dict[str, Any]:
    """Continuations of all models by text: `{card, texts: [{prompt, reference, said: {model: {text, same, tokens, equal}}}]}`.

    `same` is the number of characters shared with the dense model's, `equal` the number of tokens.
    """
    tables = {
        stage.removeprefix("samples."): read_table(subject.store, subject.of(stage)[0], SAMPLES)
        for stage in subject.artifacts
        if stage.startswith("samples.")
    }
    if not tables:
        return {}
    texts = []
    for index, first in enumerate(tables[DENSE]["samples"]):
        said = {model: each["samples"][index] for model, each in tables.items()}
        texts.append({**first, "said": {model: compare_sample(each, first) for model, each in said.items()}})
    return {"card": tables[DENSE]["card"], "texts": texts}


def compare_sample(sample: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    """Compare a continuation with the dense model's."""
    return {
        "text": sample["text"],
        "same": common_prefix(sample["text"], dense["text"]),
        "tokens": len(sample["ids"]),
        "equal": common_prefix(sample["ids"], dense["ids"]),
    }


def common_prefix(one: Any, other: Any) -> int:
    """Length of the common prefix of two sequences."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def differing_answers(subject: Subject) -> dict[str, dict[str, Any]]:
    """Questions that the dense and the compressed model answer differently, the first ones, by set: `{asked, different, shown}`."""
    pairs = zip(subject.of("answers.dense"), subject.of(f"answers.{subject.method}"), strict=True)
    sections = {}
    for dense, compressed in pairs:
        asked, again = (read_table(subject.store, each, ANSWERS) for each in (dense, compressed))
        rows = [
            {**before, "before": before["answer"], "after": after["answer"]}
            for before, after in zip(asked["answers"], again["answers"], strict=True)
        ]
        different = [row for row in rows if row["before"] != row["after"]]
        section = asked["card"]["section"].removeprefix("questions.")
        sections[section] = {"asked": len(rows), "different": len(different), "shown": different[:DISAGREEMENTS]}
    return sections


def flatten_leaves(given: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a nested table, with their paths."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from flatten_leaves(value, f"{above}.{key}" if above else key)
    else:
        yield above, given


FILTERS: dict[str, Callable[..., Any]] = {
    "label": label_of,
    "written": format_value,
    "flattened": flatten_leaves,
    "number": lambda value: f"{value:,}",
    "percent": lambda value, digits=1: f"{100 * value:.{digits}f}\u00a0%",
    "megabytes": lambda value: f"{value / 1e6:,.2f}",
    "fixed": lambda value, digits=2: f"{value:,.{digits}f}",
    "signed": lambda value, digits=4: f"{value:+.{digits}f}",
    "short": lambda text: text[:12],
}
