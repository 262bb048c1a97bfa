"""Evaluate any model by itself: a folder or a Hub id, dense or compressed, of any architecture.

    python -m flows.evaluate backbone.source=models/compressed [section.key=value ...]

Texts, windows, tasks, questions and card are those of `flows.compress`; the metrics are written to `results/evaluation.json`, below the
folder `output.results`.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.evaluate:evaluate", show="flows.evaluate:show"))

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow

from flows.command.runner import open_run_store
from flows.parts.evaluation import ModelEvaluation
from flows.parts.inputs import prepare_inputs
from flows.parts.source import prepare_source
from flows.prepare_data import prepare_questions, prepare_texts
from tasks.artifacts.files import ANSWERS, METRICS, read_table
from tasks.cache.artifact import Store
from tasks.cache.atomic import publish_file
from tasks.cache.executions import Executions, record_executions
from tasks.cache.manifest import format_json
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters
from tasks.record.run_record import Span, keep_record, place_of
from tasks.steps.load_backbone import load_model

RESULT = "evaluation.json"


@flow(name="evaluate", validate_parameters=False)
def evaluate(parameters: Parameters) -> dict[str, Any]:
    """Measure `backbone.source` on the evaluation and validation texts, on `evaluation.tasks` and, if it is multimodal, on
    `data.questions`.
    """
    check_outputs(parameters, Output("output.results", parameters.results, [RESULT, place_of(Path(), "evaluate").name]))
    with record_executions(store := open_run_store(parameters, alone=True)) as executions:
        return evaluate_model(parameters, store, executions)


def evaluate_model(params: Parameters, store: Store, executions: Executions) -> dict[str, Any]:
    """Metrics of the model, published with the record of the run."""
    began, started = time.perf_counter(), datetime.now(UTC)
    source, revision = params.backbone.source, params.backbone.revision
    model = load_model(store, **prepare_source(store, source, revision, params.backbone.dtype))
    texts, questions = prepare_texts(params, store), prepare_questions(params, store) if params.data.questions else None
    inputs = prepare_inputs(params, store, model, texts, questions, sections=("validation", "evaluation"))
    measured = ModelEvaluation.prepare(inputs).evaluate(model)
    found = {"source": source, "revision": revision, **read_table(store, measured.metrics, METRICS)}
    made = {"backbone": model, "texts": texts, **{f"tokens.{name}": each for name, each in inputs.tokens.items()}}
    made |= {"metrics": measured.metrics}
    if params.data.questions:
        found["questions"] = {name: read_table(store, each, ANSWERS) for name, each in measured.answers.items()}
        made |= {f"answers.{name}": each for name, each in measured.answers.items()}
    publish_file(params.results / RESULT, format_json(found))
    keep_record(
        params,
        store,
        "evaluate",
        artifacts=made,
        executions=executions.collect(),
        spent=Span(started, time.perf_counter() - began),
        places=[params.results / RESULT],
        in_mlflow=False,
    )
    return found


def show(parameters: Parameters) -> None:
    """Print the metrics."""
    print((parameters.results / RESULT).read_text(encoding="utf-8"))
