"""Whatever goes wrong, the user gets one message with an exit code, MLflow gets the failure, and the store keeps what it had."""

import json
import logging
import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tasks.cache.manifest import check_folder
from tests.support.laboratory import (
    BLOCKS,
    Outcome,
    TinyProject,
    change,
    documents,
    striking,
    write_model,
)

pytestmark = pytest.mark.slow

Lab = tuple[TinyProject, Outcome]


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store but the locks and records of who held them."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def check_sound(store: Path) -> None:
    """No half results, and every artifact is what its manifest says."""
    assert list(store.rglob(".tmp-*")) == []
    manifests = [*store.glob("*/*/manifest.json")]
    assert manifests
    for manifest in manifests:
        if manifest.parents[1].name != "quarantine":
            check_folder(manifest.parent, manifest.parents[1].name, manifest.parent.name)


def last_run(lab: TinyProject) -> tuple[str, str | None]:
    """How MLflow says that the last run ended, and why."""
    from mlflow import MlflowClient

    client = MlflowClient(yaml.safe_load((lab.root / "params.yaml").read_text())["tracking"]["uri"])
    experiment = client.get_experiment_by_name("mgaa")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=1)
    return run.info.status, run.data.tags.get("error")


# Mistakes in the configuration: nothing starts

MISTAKES = {
    "ratios.compression=0": "ratios.compression is 0: expected a number greater than 0",
    "ratios.compression=1": "ratios.compression is 1: expected a number less than 1",
    "ratios.compresion=0.3": "ratios.compresion is unknown",
    "factors.method=afn": "factors.method is 'afn': expected one of afm",
    "ranks.methd=energy": "ranks.methd is unknown",
    "data.evaluation.sauce=x": "data.evaluation.sauce is unknown: expected one of source, split",
    "statistics.inputs=sparse": "statistics.inputs is 'sparse': expected 'dense' or 'compressed'",
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items())
def test_a_mistake_in_the_configuration_ends_the_run_before_it_starts(
    mistake: str, message: str, empty: TinyProject
) -> None:
    outcome = empty.run(mistake)
    assert (outcome.code, outcome.message.count("\n")) == (2, 1)
    assert outcome.message.startswith(f"error: {message}")
    assert outcome.executed == {}


# Faults that a run meets


@dataclass(frozen=True)
class Fault:
    """What is wrong, as overrides after a preparation; the exit code, the steps that run before, and what is said."""

    prepare: Callable[[TinyProject, Path], list[str]]
    code: int
    message: str
    executed: frozenset[str] = frozenset()


def given(*overrides: str) -> Callable[[TinyProject, Path], list[str]]:
    return lambda lab, folder: list(overrides)


def with_model(alter: Callable[[Path], object], *overrides: str) -> Callable[[TinyProject, Path], list[str]]:
    def prepare(lab: TinyProject, folder: Path) -> list[str]:
        model = lab.copy_model(folder / "model")
        alter(model)
        return [f"backbone.source={model}", *overrides]

    return prepare


def overflowing(model: Path) -> None:
    for name in ("gate_proj", "up_proj"):
        change(model, f"model.layers.1.mlp.{name}.weight", lambda weight: weight.mul_(1e30))


def wide_range(model: Path) -> None:
    """A query projection whose entries fit float16 and whose factors do not, behind a norm that keeps activations small."""
    change(model, "model.layers.1.self_attn.q_proj.weight", lambda weight: weight.mul_(2e5).clamp_(-6e4, 6e4))
    change(model, "model.layers.1.input_layernorm.weight", lambda weight: weight.mul_(1e-4))


def truncated(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def rewrapped(lab: TinyProject, folder: Path) -> list[str]:
    """The calibration texts again, as jsonl, for the evaluation."""
    lines = [json.dumps({"text": text}) for text in lab.texts.read_text(encoding="utf-8").split("\n\n")]
    (folder / "same.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [f"data.evaluation.source={folder / 'same.jsonl'}", "data.evaluation.from=0.0", "data.evaluation.to=0.2"]


LOADED = frozenset({"load_backbone"})
FAULTS = {
    "a target out of reach, before the texts": Fault(
        given("ratios.compression=0.99"), 2, "compression 0.99 is out of reach: .* largest reachable compression is 0.9"
    ),
    "truncated weights, at the backbone": Fault(
        with_model(truncated), 3, "model.safetensors is not a complete safetensors file"
    ),
    "the same text in another form, at the texts": Fault(
        rewrapped, 3, "The calibration and evaluation texts overlap: 24 documents of at least 200 characters"
    ),
    "sequences longer than the model, at the tokens": Fault(
        given("data.calibration.length=256"), 2, r"data.calibration.length is 256, expected at most 128"
    ),
    "a standard task without its items, before the calibration": Fault(
        given("evaluation.tasks=[piqa]"), 2, "set evaluation.tasks_folder to"
    ),
    "an activation that overflows, in the calibration": Fault(
        with_model(overflowing),
        4,
        "the input of model.layers.1.mlp.down_proj has .* non-finite entries in calibration sequence 0: .*backbone.dtype",
        LOADED | {"tokenize"},
    ),
    "factors that overflow, in a mapped step": Fault(
        with_model(wide_range, "backbone.dtype=float16", "evaluation.tasks=[]"),
        4,
        "model.layers.1.self_attn.q_proj: factors of rank .* leave the range of torch.float16: set backbone.dtype",
        LOADED
        | {"tokenize", "calibrate", "decompose", "measure_perplexity", "evaluate"}
        | {"allocate_ratios", "allocate_ranks", "factorize"},
    ),
}
"""One of every exit code and phase; every other message is tested where it is raised."""


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_one_message_a_failed_run_and_no_harm(
    fault: Fault, done: TinyProject, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides, before = fault.prepare(done, tmp_path), contents(done.root / "store")
    outcome = done.run(*overrides)
    assert outcome.code == fault.code, outcome
    assert re.match(f"error: .*{fault.message}", outcome.message), outcome.message
    assert outcome.message.count("\n") == 1
    assert [
        each for each in caplog.records if each.levelno >= logging.WARNING and not getattr(each, "explained", 0)
    ] == []
    assert outcome.executed.keys() <= fault.executed
    assert contents(done.root / "store").items() >= before.items()
    check_sound(done.root / "store")
    assert last_run(done) == ("FAILED", outcome.message.removeprefix("error: ").strip())
    assert not (done.root / "results").exists()


# Damage in the store


@pytest.mark.parametrize("kind", ["texts", "spectra", "checkpoint"])
def test_a_flipped_byte_is_quarantined_reported_and_rebuilt(
    kind: str, done: TinyProject, first: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    folder = done.artifacts(kind)[0]
    makers = [task for task, digest in done.records().values() if digest == folder.name]
    path = max(folder.iterdir(), key=lambda file: (file.name != "manifest.json", file.stat().st_size))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    outcome = done.run()
    assert (outcome.code, outcome.message, outcome.executed) == (0, "", {makers[0]: len(makers)})
    assert done.records() == first[0].records()
    assert [each.name for each in (done.root / "store" / "quarantine").iterdir()] == [f"{kind}-{folder.name}-1"]
    (report,) = [each.getMessage() for each in caplog.records if each.name == "tasks.cache.artifact"]
    assert f"{path} was altered" in report
    assert "it is rebuilt now" in report
    check_sound(done.root / "store")
    assert last_run(done) == ("FINISHED", None)


# A disk that is closed or full


@contextmanager
def somebody_else() -> Iterator[None]:
    """Root may write anywhere, so it becomes another user for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_store_gives_what_it_holds_and_says_what_it_cannot_take(first: Lab) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        lab = first[0].copy(Path(folder) / "closed")
        lab.root.chmod(0o777)
        for path in [lab.root / "store", *(lab.root / "store").rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = contents(lab.root / "store")
        tracking = f"tracking.uri=sqlite:///{lab.root / 'mlflow.db'}"
        with somebody_else():
            held = lab.run(tracking)
            refused = lab.run(tracking, "ratios.compression=0.4")
        assert contents(lab.root / "store") == before
        assert held == Outcome(0, "", {})
        assert (refused.code, refused.message.count("\n")) == (5, 1)
        assert "Permission denied" in refused.message
        assert "choose another one with store.path=<folder>" in refused.message
        for path in (lab.root / "store").rglob("*"):
            path.chmod(0o755)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_ends_the_run_and_the_next_one_finishes(done: TinyProject, tmp_path: Path) -> None:
    write_model(tmp_path / "large", documents(seed=1), rows=50_000)  # so that the checkpoint is the largest file
    options = [
        f"backbone.source={tmp_path / 'large'}",
        "evaluation.tasks=[]",
        "evaluation.baselines=[]",
        "data.evaluation.to=0.75",
    ]
    with limited(8_000_000):
        full = done.run(*options)
    assert (full.code, full.message.count("\n")) == (5, 1)
    assert re.search(r"File too large.*Lift the limit of 8\.0 MB a file", full.message)
    check_sound(done.root / "store")
    status, reason = last_run(done)
    assert (status, reason) == ("FAILED", full.message.removeprefix("error: ").strip())
    finished = done.run(*options)
    assert (finished.code, finished.message) == (0, "")
    assert finished.executed == {
        "assemble": 1,
        "measure_perplexity": 2,
        "evaluate": 1,
        "generate": 2,
        "draw_figures": 1,
    }


# A run that is stopped


def test_a_terminated_run_says_so_and_keeps_what_was_finished(fresh: TinyProject, prefect_server: str) -> None:
    outcome = fresh.finish(before=striking("SIGTERM", "spectra", 1), PREFECT_API_URL=prefect_server)
    assert (outcome.code, outcome.message) == (
        130,
        "interrupted: completed steps are cached; run the same command to resume\n",
    )
    assert outcome.executed.keys() >= {"load_backbone", "read_texts", "tokenize", "calibrate"}
    assert outcome.executed.get("decompose", 0) <= BLOCKS
    assert not outcome.executed.keys() & {"allocate_ratios", "factorize", "assemble"}
    check_sound(fresh.root / "store")
    assert last_run(fresh)[0] == "FAILED"
