"""The main flow: a backbone and a compression target in; a compressed checkpoint, its metrics and its record out.

    python -m flows.compress [section.key=value ...]

backbone -> texts -> tokens -> statistics -> spectra -> ratios -> ranks -> factors -> checkpoint -> metrics

Every arrow is a cached step that takes and gives artifacts, so a second run executes nothing, and another target starts at `ratios`.
The method and its baselines differ in the methods of level 1 and level 2 only: same statistics, spectra, budget and refill.
"""

import time
from typing import Any

from prefect import flow, unmapped
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.allocate_ranks import allocate_ranks
from tasks.allocate_ratios import allocate_ratios
from tasks.artifact import Artifact, Store
from tasks.assemble import assemble
from tasks.calibrate import calibrate
from tasks.decompose import decompose
from tasks.draw_figures import draw_figures
from tasks.evaluate import evaluate, is_standard, standard_items
from tasks.factorize import factorize
from tasks.load_backbone import backbone_record, identify, load_backbone
from tasks.make_items import make_items
from tasks.parameters import Parameters, Texts
from tasks.prepare_data import READING, SECTIONS, read_texts, source_content, tokenize
from tasks.results import Compressed, Results, publish
from tasks.step import recording
from tasks.tracking import tracked

UNIFORM: dict[str, Any] = {"method": "uniform", "options": {}}


@flow(name="compress", task_runner=ThreadPoolTaskRunner(max_workers=2), validate_parameters=False)
def compress(parameters: Parameters) -> Results:
    """Compress `parameters.backbone` by the method and by every baseline, evaluate all of them, and publish the results."""
    p, began = parameters, time.perf_counter()
    store = Store(p.store_path, p.store.lock_timeout)
    device = resolve_device(p.backbone.device)
    with tracked(p, store) as run, recording() as executions:
        backbone, texts, tokens = prepare(p, store)
        statistics = calibrate(
            store,
            backbone,
            tokens["calibration"],
            inputs=p.statistics.inputs,
            groups=p.statistics.groups,
            batch_size=p.evaluation.batch_size,
            device=device,
        )
        blocks = list(range(backbone_record(store, backbone)["blocks"]))
        spectra = decompose.map(
            unmapped(store),
            unmapped(backbone),
            unmapped(statistics),
            block=blocks,
            method=p.factors.method,
            options=unmapped(p.factors.options),
            device=device,
        ).result()
        measured = {
            "evaluation": tokens["evaluation"],
            "validation": tokens["validation"],
            "items": make_items(store, texts) if any(not is_standard(task) for task in p.evaluation.tasks) else None,
            "length": p.data.evaluation.length,
            "stride": p.data.evaluation.stride,
            "batch_size": p.evaluation.batch_size,
            "tasks": p.evaluation.tasks,
            "limit": p.evaluation.limit,
            "tasks_folder": p.evaluation.tasks_folder,
            "tasks_content": standard_items(p.evaluation.tasks, p.evaluation.tasks_folder),
            "device": device,
        }
        models: dict[str, Compressed] = {}
        dense = evaluate(store, backbone, **measured)
        for name, (level1, level2) in variants(p).items():
            target = {"compression": p.ratios.compression, "multiple": p.ranks.multiple}
            ratios = allocate_ratios(store, backbone, statistics, spectra, **level1, **target)
            ranks = allocate_ranks(store, backbone, spectra, ratios, **level2, **target)
            factors = factorize.map(
                unmapped(store), unmapped(backbone), spectra, unmapped(ranks), block=blocks, device=device
            ).result()
            checkpoint = assemble(store, backbone, factors)
            models[name] = Compressed(ratios, ranks, factors, checkpoint, evaluate(store, checkpoint, **measured))
        results = Results(backbone, texts, tokens, statistics, spectra, dense, models)
        figures = draw_figures(store, *drawn(results))
        publish(p, store, results, figures, Run.of(executions, began))
        run.log(results)
    return results


def prepare(p: Parameters, store: Store) -> tuple[Artifact, Artifact, dict[str, Artifact]]:
    """The backbone, the texts, and the tokens of each section."""
    source, revision = p.backbone.source, p.backbone.revision
    backbone = load_backbone(
        store, source=source, revision=revision, dtype=p.backbone.dtype, files=identify(source, revision)
    )
    sections = {name: getattr(p.data, name) for name in SECTIONS}
    texts = read_texts(
        store,
        sections={name: reading(given) for name, given in sections.items()},
        content={name: source_content(given.source) for name, given in sections.items()},
    )
    tokens = {
        name: tokenize(
            store, backbone, texts, section=name, length=given.length, samples=given.samples, seed=given.seed
        )
        for name, given in sections.items()
    }
    return backbone, texts, tokens


def reading(given: Texts) -> dict[str, Any]:
    """The parameters of a section that choose its documents."""
    return {name: value for name, value in given.model_dump(by_alias=True).items() if name in READING}


def variants(p: Parameters) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Methods of level 1 and level 2 of the run's method and of every baseline."""
    ratios = {"method": p.ratios.method, "options": p.ratios.options, "cap": p.ratios.cap}
    ranks = {"method": p.ranks.method, "options": p.ranks.options}
    even = {**UNIFORM, "cap": None}
    known = {"uniform": (even, UNIFORM), "level1": (ratios, UNIFORM), "level2": (even, ranks)}
    return {**{name: known[name] for name in p.evaluation.baselines}, p.method: (ratios, ranks)}


def resolve_device(device: str) -> str:
    """`auto` is CUDA where there is one."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    from flows.cli import main

    main(compress)
