"""The main flow: a backbone and a compression target in; a compressed checkpoint, its metrics and its record out.

    python -m flows.compress [section.key=value ...]

backbone -> texts -> tokens -> statistics -> spectra -> ratios -> ranks -> factors -> checkpoint -> metrics

Every arrow is a cached step that takes and gives artifacts, so a second run executes nothing, and another target starts at `ratios`.
The method and its baselines differ in the methods of level 1 and level 2 only: same statistics, spectra, budget and refill.
"""

import sys
import time
from typing import Any

from prefect import flow, unmapped
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.evaluate import device, measurement
from flows.prepare_data import prepared_texts, prepared_tokens
from mgaa.errors import UsageError
from tasks.allocate_ranks import allocate_ranks
from tasks.allocate_ratios import allocate_ratios
from tasks.artifact import Store
from tasks.assemble import assemble
from tasks.calibrate import calibrate
from tasks.decompose import decompose
from tasks.draw_figures import draw_figures
from tasks.evaluate import evaluate
from tasks.factorize import factorize
from tasks.load_backbone import identify, load_backbone
from tasks.parameters import Parameters
from tasks.recording import recording
from tasks.records import backbone_record
from tasks.rehearse import rehearse
from tasks.results import Compressed, Effort, Results, publish
from tasks.tracking import tracked

RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=2)
"""Blocks are decomposed and factorized side by side; their linear algebra releases the interpreter."""


@flow(name="compress", task_runner=RUNNER, validate_parameters=False)
def compress(parameters: Parameters) -> Results:
    """Compress `backbone.source` by the method and by every baseline, evaluate all of them, and publish the results."""
    p, began = parameters, time.perf_counter()
    store = Store(p.store_path, p.store.lock_timeout)
    source, revision, where = p.backbone.source, p.backbone.revision, device(p)
    with tracked(p) as run, recording() as executions:
        pairs = variants(p)
        backbone = load_backbone(
            store, source=source, revision=revision, dtype=p.backbone.dtype, files=identify(source, revision)
        )
        rehearse(store, backbone, (p.factors.method, p.factors.options), pairs.values())
        blocks = list(range(backbone_record(store, backbone)["blocks"]))
        texts = prepared_texts(p, store)
        tokens = prepared_tokens(p, store, backbone, texts)
        measured = measurement(p, store, texts, tokens)
        measure: dict[str, Any] = p.statistics.model_dump()
        statistics = calibrate(store, backbone, tokens["calibration"], **measure, device=where)
        shared: dict[str, Any] = {
            "store": unmapped(store),
            "backbone": unmapped(backbone),
            "block": blocks,
            "device": where,
        }
        spectra = decompose.map(
            statistics=unmapped(statistics), method=p.factors.method, options=unmapped(p.factors.options), **shared
        ).result()

        dense = evaluate(store, backbone, **measured)
        models: dict[str, Compressed] = {}
        for name, (level1, level2) in pairs.items():
            ratios = allocate_ratios(store, backbone, statistics, spectra, **level1)
            ranks = allocate_ranks(store, backbone, spectra, ratios, **level2)
            factors = factorize.map(spectra=spectra, ranks=unmapped(ranks), **shared).result()
            checkpoint = assemble(store, backbone, factors)
            metrics = evaluate(store, checkpoint, **measured)
            models[name] = Compressed(ratios, ranks, factors, checkpoint, metrics)

        results = Results(backbone, texts, tokens, statistics, spectra, dense, models)
        figures = draw_figures(store, **drawn(results))
        published = publish(p.folder, store, results, figures, Effort.since(began, executions))
        run.log(results, published)
    return results


def drawn(results: Results) -> dict[str, Any]:
    """The artifacts that the figures are drawn from."""
    models = results.models.values()
    return {
        "backbone": results.backbone,
        "statistics": results.statistics,
        "spectra": results.spectra,
        "ratios": [model.ratios for model in models],
        "ranks": [model.ranks for model in models],
        "metrics": [results.dense, *(model.metrics for model in models)],
        "models": list(results.models),
    }


def variants(p: Parameters) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Arguments of level 1 and level 2, for every baseline and, last, for the run's method.

    Raises:
        UsageError: a baseline that would be the method itself.
    """
    if p.ranks.method == "file" and "level2" in p.evaluation.baselines:
        raise UsageError(
            "evaluation.baselines has level2, which with ranks.method=file is the method itself: leave it out"
        )
    target = {"compression": p.ratios.compression, "multiple": p.ranks.multiple}
    even: dict[str, Any] = {"method": "uniform", "options": {}, **target}
    ratios = {**target, "method": p.ratios.method, "options": p.ratios.options, "band": p.ratios.band}
    ranks = {**target, "method": p.ranks.method, "options": p.ranks.options}
    known = {
        "uniform": ({**even, "band": None}, even),
        "level1": (ratios, even),
        "level2": ({**even, "band": None}, ranks),
    }
    return {**{name: known[name] for name in p.evaluation.baselines}, p.method: (ratios, ranks)}


if __name__ == "__main__":
    from flows.cli import main
    from flows.show import show

    sys.exit(main(compress, show=show))
