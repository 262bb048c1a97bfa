"""The audit report: everything that is to be said of a run, as one HTML page that needs nothing beside itself.

The page is a function of the store and of what the record of the run holds: it has no clock, so that made again it has the same bytes, and
what it says of time and memory is that of the steps, whenever they ran. Figures are those of the artifact `figures`; no script runs, and
the page allows no request (its Content-Security-Policy). tasks/results/templates/report.html has the words, report.css the looks.
"""

import base64
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.files import ANSWERS, SAMPLES, backbone_record, table
from tasks.cache.artifact import Artifact, Store
from tasks.figures.allocation_rows import pair
from tasks.figures.style import label_of, short_names
from tasks.record.lineage import lineage, name
from tasks.results import lineage_tree
from tasks.results.model_card import model_card
from tasks.results.parameter_changes import changed, command, relevant, written

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
DENSE, EVEN, UNRECOVERED = "dense", "uniform", "unrecovered"
DISAGREEMENTS = 24
"""Questions that are shown with their answers."""
ALTERNATIVES = {
    "ranks": "Heat map of the rank of every matrix in every block, of the method and of the baseline",
    "sublayers": "Cosine of the residual stream before and after every sublayer, and the compression ratio of every sublayer, by block",
    "energies": "Kept energy against the kept share of parameters, a panel for each kind of matrix and a line for each block",
    "errors": "Relative output error of every layer by block, the method against the baseline",
    "sizes": "Perplexity against megabytes on disk, every model with its standard error",
    "recovery": "Training and validation loss of the recovery by optimizer step",
}
"""What each figure shows, for those who do not see it."""


@dataclass(frozen=True)
class Subject:
    """What a report is about.

    Attributes:
        parameters: all of the run, by dotted key.
        artifacts: by stage, as in `tasks.results.publish.Results.artifacts`, with `figures`.
        keys: of the stages by which the run had them.
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
        """The name of the run's method."""
        return str([*self.metrics["models"]][-1])

    def of(self, stage: str) -> list[Artifact]:
        """The artifacts of a stage."""
        given = self.artifacts.get(stage, [])
        return [given] if isinstance(given, Artifact) else given

    @property
    def backbone(self) -> dict[str, Any]:
        """The record of the backbone."""
        return backbone_record(self.store, self.of("backbone")[0])


def page(subject: Subject) -> str:
    """The report as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    html: str = environment.get_template(PAGE).render(content(subject))
    return html


def card_of(subject: Subject) -> str:
    """The model card of the run's checkpoint."""
    (checkpoint,) = subject.of(f"checkpoint.{subject.method}")
    commit = subject.store.manifest(checkpoint)["git"]["commit"]
    given = subject.metrics, subject.parameters, subject.backbone
    return model_card(*given, checkpoint=checkpoint.digest, commit=commit)


def shown_card(text: str) -> dict[str, Any]:
    """A model card in its two parts: the front matter as it is, and the body as HTML whose headings are below those of the page."""
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


def content(subject: Subject) -> dict[str, Any]:
    """What the template shows, by name."""
    metrics, store = subject.metrics, subject.store
    changes = changed(subject.parameters, subject.origin["git"]["commit"])
    stages = {stage: subject.of(stage) for stage in subject.artifacts}
    behind = lineage(store, [each for those in stages.values() for each in those], subject.keys)
    shown = pair(subject.allocations)
    return {
        "title": f"{Path(subject.backbone['source']).name} compressed by {label_of(subject.method)}",
        "method": subject.method,
        "models": metrics["models"],
        "card": metrics["card"],
        "comparison": metrics.get("comparison", {}),
        "backbone": subject.backbone,
        "parameters": relevant(subject.parameters),
        "changes": changes,
        "command": command(subject.parameters, changes),
        "losses": losses(metrics["models"]),
        "budgets": subject.allocations,
        "shown": shown,
        "short": short_names([each["matrix"] for each in next(iter(shown.values()))["matrices"].values()]),
        "figures": figures(subject),
        "samples": samples(subject),
        "answers": answers(subject),
        "stage_of": {name(each): stage for stage, those in stages.items() for each in those},
        "behind": behind,
        "tree": lineage_tree.tree(behind, [name(each) for each in subject.of(f"checkpoint.{subject.method}")]),
        "efforts": lineage_tree.efforts(store, behind),
        "sources": lineage_tree.sources(behind),
        "origins": lineage_tree.origins(behind),
        "origin": subject.origin,
        "model_card": shown_card(card_of(subject)),
        "checkpoint": metrics["models"][subject.method]["checkpoint"],
    }


def losses(models: Mapping[str, Any]) -> dict[str, float]:
    """How far the log-perplexity of every compressed model is above that of the dense one, in nats."""
    dense = models[DENSE]["perplexity"]
    return {each: math.log(found["perplexity"] / dense) for each, found in models.items() if each != DENSE}


def figures(subject: Subject) -> dict[str, dict[str, str]]:
    """Every figure of the run by name: the vector file as a `uri` that holds all of it, and in words what it shows."""
    folder = subject.store.folder(subject.of("figures")[0])
    return {
        path.stem: {
            "uri": f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}",
            "alternative": ALTERNATIVES.get(path.stem, "Questions about images, with the answers before and after"),
        }
        for path in sorted(folder.glob("*.svg"))
    }


def samples(subject: Subject) -> dict[str, Any]:
    """The continuations of all models by text: `{card, texts: [{prompt, reference, said: {model: {text, same, tokens, equal}}}]}`.

    `same` is how many characters are those of the dense model's, `equal` how many tokens.
    """
    found = {
        stage.removeprefix("samples."): table(subject.store, subject.of(stage)[0], SAMPLES)
        for stage in subject.artifacts
        if stage.startswith("samples.")
    }
    if not found:
        return {}
    texts = []
    for index, first in enumerate(found[DENSE]["samples"]):
        said = {model: each["samples"][index] for model, each in found.items()}
        texts.append({**first, "said": {model: against(each, first) for model, each in said.items()}})
    return {"card": found[DENSE]["card"], "texts": texts}


def against(sample: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    """A continuation beside that of the dense model."""
    return {
        "text": sample["text"],
        "same": common(sample["text"], dense["text"]),
        "tokens": len(sample["ids"]),
        "equal": common(sample["ids"], dense["ids"]),
    }


def common(one: Any, other: Any) -> int:
    """The length of the beginning that two sequences share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def answers(subject: Subject) -> dict[str, dict[str, Any]]:
    """By set of questions those that the dense and the compressed model answer differently, the first ones: `{asked, different, shown}`."""
    pairs = zip(subject.of("answers.dense"), subject.of(f"answers.{subject.method}"), strict=True)
    found = {}
    for dense, compressed in pairs:
        asked, again = (table(subject.store, each, ANSWERS) for each in (dense, compressed))
        rows = [
            {**before, "before": before["answer"], "after": after["answer"]}
            for before, after in zip(asked["answers"], again["answers"], strict=True)
        ]
        different = [row for row in rows if row["before"] != row["after"]]
        section = asked["card"]["section"].removeprefix("questions.")
        found[section] = {"asked": len(rows), "different": len(different), "shown": different[:DISAGREEMENTS]}
    return found


def flattened(given: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested table by their path."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from flattened(value, f"{above}.{key}" if above else key)
    else:
        yield above, given


FILTERS: dict[str, Callable[..., Any]] = {
    "label": label_of,
    "written": written,
    "flattened": flattened,
    "number": lambda value: f"{value:,}",
    "percent": lambda value, digits=1: f"{100 * value:.{digits}f}\u00a0%",
    "megabytes": lambda value: f"{value / 1e6:,.2f}",
    "fixed": lambda value, digits=2: f"{value:,.{digits}f}",
    "signed": lambda value, digits=4: f"{value:+.{digits}f}",
    "short": lambda text: text[:12],
}
