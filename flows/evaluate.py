"""Evaluate any model by itself: a folder or a Hub id, dense or compressed, of any architecture.

    python -m flows.evaluate backbone.source=models/compressed [section.key=value ...]

The same texts, windows, tasks, questions and card as in `flows.compress`; the metrics go to `results/evaluation.json`, or where
`output.results` says.
"""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow

from flows.command.runner import opened
from flows.parts.measurement import device, measurement
from flows.parts.questions import answers_of
from flows.prepare_data import prepared_questions, prepared_texts, prepared_tokens
from tasks.artifacts.files import ANSWERS, METRICS, table
from tasks.cache.artifact import Store
from tasks.cache.atomic import publish_file
from tasks.cache.executions import Executions, recording
from tasks.cache.manifest import readable
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters
from tasks.record.run_record import Span, keep_record, place_of
from tasks.steps.evaluate import evaluate as measure
from tasks.steps.load_backbone import architecture_digest, identify, load_model

RESULT = "evaluation.json"


@flow(name="evaluate", validate_parameters=False)
def evaluate(parameters: Parameters) -> dict[str, Any]:
    """Measure `backbone.source` on the evaluation and validation texts, on `evaluation.tasks`, and on `data.questions` if it sees."""
    check_outputs(parameters, Output("output.results", parameters.results, [RESULT, place_of(Path(), "evaluate").name]))
    with recording(store := opened(parameters, alone=True)) as executions:
        return evaluated(parameters, store, executions)


def evaluated(p: Parameters, store: Store, executions: Executions) -> dict[str, Any]:
    """The metrics of the model, published with the record of the run."""
    began, started = time.perf_counter(), datetime.now(UTC)
    source, revision = p.backbone.source, p.backbone.revision
    given: dict[str, Any] = {"source": source, "revision": revision, "dtype": p.backbone.dtype}
    given |= {"files": identify(source, revision), "architecture": architecture_digest(source, revision)}
    model = load_model(store, **given)
    texts = prepared_texts(p, store)
    tokens = prepared_tokens(p, store, model, texts, ("validation", "evaluation"))
    metrics = measure(store, model, **measurement(p, store, texts, tokens))
    found = {"source": source, "revision": revision, **table(store, metrics, METRICS)}
    made = {"backbone": model, "texts": texts, **{f"tokens.{name}": each for name, each in tokens.items()}}
    made |= {"metrics": metrics}
    if p.data.questions:
        answers = answers_of(p, store, model, prepared_questions(p, store), device(p))
        found["questions"] = {name: table(store, each, ANSWERS) for name, each in answers.items()}
        made |= {f"answers.{name}": each for name, each in answers.items()}
    publish_file(p.results / RESULT, readable(found))
    keep_record(
        p,
        store,
        "evaluate",
        artifacts=made,
        executions=executions,
        spent=Span(started, time.perf_counter() - began),
        places=[p.results / RESULT],
        in_mlflow=False,
    )
    return found


if __name__ == "__main__":
    from flows.command.cli import main

    sys.exit(main(evaluate, show=lambda p: print((p.results / RESULT).read_text(encoding="utf-8"))))
