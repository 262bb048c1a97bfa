"""A finished run for read-only tests: a tiny random Llama, compressed by MGAA and by uniform through the real steps, without Prefect's
engine.
"""

import os
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from mgaa.checkpoints.save import save
from mgaa.statistics.calibration import CalibrationSettings
from tasks.artifacts.specs import MethodSpec, TargetSpec, WindowSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import keys_by, record_executions
from tasks.config.parameters import Parameters, load_parameters
from tasks.record.run_record import Span, keep_record
from tasks.results.publish import Compressed, Effort, Evaluated, Results, publish_results
from tasks.steps.allocate_ranks import allocate_ranks
from tasks.steps.allocate_ratios import allocate_ratios
from tasks.steps.assemble import assemble
from tasks.steps.calibrate import calibrate
from tasks.steps.decompose import decompose
from tasks.steps.draw_figures import draw_figures
from tasks.steps.evaluate import evaluate
from tasks.steps.factorize import factorize
from tasks.steps.generate import generate
from tasks.steps.load_backbone import architecture_digest, identify, load_backbone
from tasks.steps.measure_perplexity import measure_perplexity
from tasks.steps.read_texts import READING, SECTIONS, read_texts, source_content
from tasks.steps.tokenize import tokenize

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = 2


@dataclass(frozen=True)
class Finished:
    """A run with everything it left in `parameters.folder`."""

    parameters: Parameters
    store: Store
    results: Results
    figures: Artifact
    published: Mapping[str, Any]
    record: Artifact


@cache
def finished_run() -> Finished:
    """The run, computed once per session (seconds) in a folder that is deleted with the tests' home; do not modify it."""
    folder = Path(os.environ["PREFECT_HOME"]) / "finished run"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    write_model(folder / "model")
    parts = {section: write_texts(folder / f"{section}.jsonl", seed) for seed, section in enumerate(SECTIONS)}
    sources = [f"data.{section}.source={path}" for section, path in parts.items()]
    lengths = [f"data.{section}.length=16" for section in SECTIONS]
    params = load_parameters(folder / "params.yaml", [f"backbone.source={folder / 'model'}", *sources, *lengths])
    store, start = Store(params.store_path), datetime.now(UTC)
    with record_executions(store) as executions:
        results = run(params, store)
    models = [*results.models.values()]
    figures = draw_figures.fn(
        store,
        results.backbone,
        results.statistics,
        results.spectra,
        [],
        [model.ratios for model in models],
        [model.ranks for model in models],
        [results.dense.metrics, *(model.metrics for model in models)],
        None,
        [],
        None,
        models=[*results.models],
        sets=[],
    )
    published = publish_results(
        params, store, results, figures, Effort.since(time.perf_counter(), []), keys_by(executions.collect())
    )
    made = results.artifacts() | {"figures": figures}
    record = keep_record(
        params, store, "compress", artifacts=made, executions=executions.collect(), spent=Span(start, 1.0)
    )
    return Finished(params, store, results, figures, published, record)


def run(params: Parameters, store: Store) -> Results:
    """Run the steps of `flows.compress`, for the baseline `uniform` and the method."""
    backbone = load_backbone.fn(
        store,
        source=params.backbone.source,
        revision=None,
        dtype="auto",
        files=identify(params.backbone.source, None),
        architecture=architecture_digest(params.backbone.source, None),
        parts=["decoder"],
    )
    sections = {name: getattr(params.data, name).model_dump(by_alias=True) for name in SECTIONS}
    texts = read_texts.fn(
        store,
        sections={name: {key: given[key] for key in READING} for name, given in sections.items()},
        content={name: source_content(given["source"]) for name, given in sections.items()},
    )
    tokens = {
        name: tokenize.fn(store, backbone, texts, section=name, length=16, samples=None, seed=0) for name in sections
    }
    statistics = calibrate.fn(
        store,
        backbone,
        tokens["calibration"],
        inputs=params.statistics.inputs,
        calibration=CalibrationSettings(**params.statistics.model_dump(exclude={"inputs", "shards", "gradients"})),
        device="cpu",
    )
    spectra = [
        decompose.fn(store, backbone, statistics, block=block, factors=MethodSpec("afm", {}), device="cpu")
        for block in range(BLOCKS)
    ]

    def measure(model: Artifact) -> Artifact:
        windows, sections = WindowSpec(16, None, 8), (tokens["evaluation"], tokens["validation"])
        perplexities = [measure_perplexity.fn(store, model, each, windows=windows, device="cpu") for each in sections]
        return evaluate.fn(store, *perplexities, [], tasks=[], limit=None, harness="lm-eval")

    def compressed(level1: MethodSpec, level2: MethodSpec) -> Compressed:
        target = TargetSpec(0.3, "auto")
        ratios = allocate_ratios.fn(store, backbone, statistics, ratios=level1, target=target, centred=True)
        ranks = allocate_ranks.fn(store, backbone, spectra, [], ratios, ranks=level2, target=target)
        factors = [
            factorize.fn(store, backbone, spectrum, None, ranks, block=block, device="cpu")
            for block, spectrum in enumerate(spectra)
        ]
        checkpoint = assemble.fn(store, backbone, factors)
        return Compressed(ratios, ranks, factors, checkpoint, measure(checkpoint))

    models = {
        "uniform": compressed(MethodSpec("uniform", {"band": None}), MethodSpec("uniform", {})),
        "mgaa": compressed(
            MethodSpec("softmax", {"temperature": 0.2, "band": None}), MethodSpec("energy", {"power": 1.0})
        ),
    }
    shown = {"dense": backbone, **{name: model.checkpoint for name, model in models.items()}}
    samples = {
        name: generate.fn(store, model, texts, **params.evaluation.samples.model_dump(), device="cpu")
        for name, model in shown.items()
    }
    dense = Evaluated(measure(backbone), {})
    return Results(backbone, texts, tokens, statistics, spectra, dense, models, samples=samples)


def write_model(folder: Path) -> None:
    """Write a model of two random blocks and a tokenizer of 63 words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=61,
        eos_token_id=62,
    )
    vocabulary = {f"w{i}": i for i in range(60)} | {"<unk>": 60, "<s>": 61, "</s>": 62}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    save(LlamaForCausalLM(config).eval(), tokenizer, folder)


def write_texts(path: Path, seed: int) -> Path:
    """Write forty documents of random words."""
    import json

    source = random.Random(seed)
    texts = [" ".join(f"w{source.randrange(60)}" for _ in range(30)) for _ in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
