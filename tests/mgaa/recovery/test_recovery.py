"""Recovery lowers the loss, merges what it learnt, goes on where it was interrupted, and changes nothing when it fails."""

import copy
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

import mgaa
from mgaa.errors import InputError, LockedError, NumericalError, ResourceError, UsageError
from mgaa.recovery import Curve, Examples, Plan, from_windows, recover_, training
from mgaa.recovery.job import job_of, seal
from mgaa.recovery.plan import METHODS, WAYS

Forward = Callable[[PreTrainedModel], Tensor]


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def loss_of(model: PreTrainedModel, examples: Examples) -> float:
    ids = examples.ids.reshape(len(examples), -1)
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def of_lengths(ids: Tensor, lengths: list[int]) -> Examples:
    starts = torch.tensor([0, *lengths]).cumsum(0)
    labels = ids.clone()
    labels[starts[:-1]] = -100
    return Examples(ids[: starts[-1]], labels[: starts[-1]], starts)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The next training ends by an error in the forward pass after that many steps (of two passes each)."""
    passes = iter(range(2 * steps + 1))
    forward = training._Trainer.training_step

    def interrupted(*arguments: object, **given: object) -> Tensor:
        if next(passes) == 2 * steps:
            raise error
        return forward(*arguments, **given)

    monkeypatch.setattr(training._Trainer, "training_step", interrupted)


@pytest.mark.parametrize("tune", WAYS)
def test_training_lowers_the_loss_of_the_merged_model(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path, tune: str
) -> None:
    count, before = mixed.num_parameters(), loss_of(mixed, validation)
    plan = replace(plan, tune=tune, steps=25, rate=3e-2, evaluate_every=10)
    curve = recover_(mixed, examples, validation, plan, folder=tmp_path)
    assert [point.step for point in curve.points] == list(range(26))
    assert [point.step for point in curve.points if point.validation is not None] == [0, 10, 20, 25]
    assert curve.before == pytest.approx(before, rel=1e-5)
    assert curve.after < 0.8 * curve.before
    assert loss_of(mixed, validation) == pytest.approx(curve.after, rel=1e-4)
    assert (mixed.num_parameters() == count) == (tune == "factors")
    assert not mixed.training
    assert not any(parameter.requires_grad for parameter in mixed.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapters.safetensors",
        "curve.json",
        "job.json",
        "job.lock",
    ]


def test_a_recovered_model_is_saved_and_loaded(
    mixed: PreTrainedModel,
    words: PreTrainedTokenizerFast,
    logits: Forward,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
) -> None:
    recover_(mixed, examples, validation, plan, folder=tmp_path / "recovery")
    before = logits(mixed)
    mgaa.save(mixed, words, tmp_path / "saved")
    assert torch.equal(logits(mgaa.load(tmp_path / "saved", device="cpu")[0]), before)


def test_the_second_call_reads_the_result(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    twin = copy.deepcopy(mixed)
    curve = recover_(mixed, examples, validation, plan, folder=tmp_path)
    monkeypatch.delattr(training, "train")
    assert recover_(twin, examples, validation, plan, folder=tmp_path) == curve
    assert same(twin.state_dict(), mixed.state_dict())


@pytest.mark.parametrize(("method", "steps"), [("lora", 1), ("lora", 3), ("lora", 4), ("diagonals", 3)])
def test_an_interrupted_recovery_goes_on_to_the_same_bits(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    steps: int,
) -> None:
    plan, before = replace(plan, method=method, dropout=0.1), state_of(mixed)
    whole, broken = copy.deepcopy(mixed), mixed
    curve = recover_(whole, examples, validation, plan, folder=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(steps, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            recover_(broken, examples, validation, plan, folder=tmp_path / "broken")
    assert same(broken.state_dict(), before)
    torch.rand(3)  # what else the process draws does not matter
    assert recover_(broken, examples, validation, plan, folder=tmp_path / "broken") == curve
    assert same(broken.state_dict(), whole.state_dict())


def test_a_folder_can_be_moved_meanwhile(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            recover_(mixed, examples, validation, plan, folder=tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert recover_(mixed, examples, validation, plan, folder=tmp_path / "there").best == 6


def test_a_process_that_dies_before_the_result_needs_no_further_step(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mgaa.recovery.job.Job.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            recover_(mixed, examples, validation, plan, folder=tmp_path)
    stop_after(0, monkeypatch, AssertionError("it trains"))
    assert len(recover_(mixed, examples, validation, plan, folder=tmp_path).points) == 7


@pytest.fixture
def stopped(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A recovery of `mixed` that was interrupted in its sixth step: with the checkpoints of the second and the fourth."""
    with monkeypatch.context() as patch:
        stop_after(5, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            recover_(mixed, examples, validation, plan, folder=tmp_path / "stopped")
    return tmp_path / "stopped"


def test_a_checkpoint_holds_adapters_and_no_pickle_of_arguments(stopped: Path) -> None:
    assert sorted(path.name for path in stopped.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert sorted(path.name for path in (stopped / "checkpoint-4").iterdir()) == [
        "adapters.safetensors",
        "complete.json",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    ]
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(stopped / "checkpoint-4" / name, weights_only=True)


@pytest.mark.parametrize("damage", ["unsealed", "altered"])
def test_an_incomplete_checkpoint_is_dropped_aloud(
    stopped: Path,
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    damage: str,
) -> None:
    if damage == "unsealed":
        (stopped / "checkpoint-4" / "complete.json").unlink()
    else:
        (stopped / "checkpoint-4" / "optimizer.pt").write_bytes(b"PK")
    whole = copy.deepcopy(mixed)
    curve = recover_(whole, examples, validation, plan, folder=tmp_path / "whole")
    with pytest.warns(UserWarning, match=r"checkpoint-4 is incomplete or damaged and was dropped"):
        assert recover_(mixed, examples, validation, plan, folder=stopped) == curve
    assert same(mixed.state_dict(), whole.state_dict())


class Harmful:
    """What a pickle could do when it is opened freely."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_code_in_a_checkpoint_is_run(
    stopped: Path,
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    name: str,
) -> None:
    torch.save({"state": Harmful(tmp_path / "harm")}, stopped / "checkpoint-4" / name)
    seal(stopped / "checkpoint-4")
    with pytest.raises(UnpicklingError):
        recover_(mixed, examples, validation, plan, folder=stopped)
    assert not (tmp_path / "harm").exists()


def test_a_full_disk_is_reported_and_the_run_can_go_on(
    stopped: Path,
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = state_of(mixed)
    with monkeypatch.context() as patch:
        full = RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")  # as torch says it
        patch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(
            ResourceError, match=r"step 6 cannot be written to .*unexpected pos 64.*: make room and start again"
        ):
            recover_(mixed, examples, validation, plan, folder=stopped)
    assert same(mixed.state_dict(), before)
    with pytest.warns(UserWarning, match="checkpoint-6 is incomplete"):
        assert recover_(mixed, examples, validation, plan, folder=stopped).best == 6


def test_a_folder_of_another_recovery_is_refused(
    stopped: Path, mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan
) -> None:
    other = copy.deepcopy(mixed)
    with torch.no_grad():
        other.model.norm.weight[0] += 1
    changed = from_windows(torch.zeros(2, 5, dtype=torch.int64))
    for inputs, difference in (
        ((other, examples, validation, plan), "the model"),
        ((mixed, changed, validation, plan), "the examples"),
        ((mixed, examples, changed, plan), "the validation"),
        (
            (mixed, examples, validation, replace(plan, rate=0.5, seed=3)),
            "rate 0.01 there, 0.5 here; seed 0 there, 3 here",
        ),
    ):
        with pytest.raises(
            InputError, match=rf"belongs to another recovery, which differs in {difference}: give a new"
        ):
            recover_(*inputs, folder=stopped)
    assert len(list(stopped.glob("checkpoint-*"))) == 2


def test_two_processes_do_not_train_in_one_folder(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    job = job_of(mixed, examples, validation, plan, tmp_path)
    with job.lock(), pytest.raises(LockedError, match=r"another process trains in .*: wait for it, stop it"):
        recover_(mixed, examples, validation, plan, folder=tmp_path)


def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_everything(
    stopped: Path,
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, modules = state_of(mixed), dict(mixed.named_modules())
    files = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    forward = training._sum
    monkeypatch.setattr(training, "_sum", lambda *given: forward(*given) * float("inf"))
    message = (
        r"The training loss is inf at step 5, expected a finite number: lower recovery.rate, or set recovery.precision"
    )
    with pytest.raises(NumericalError, match=message):
        recover_(mixed, examples, validation, plan, folder=stopped)
    assert same(mixed.state_dict(), before)
    assert dict(mixed.named_modules()) == modules
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == files


def test_an_absurd_rate_is_noticed(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    with pytest.raises(NumericalError, match=r"The (training|validation) loss is (nan|inf) at step [12]"):
        recover_(mixed, examples, validation, replace(plan, rate=1e30), folder=tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_training_stops_when_validation_no_longer_improves(
    mixed: PreTrainedModel, examples: Examples, plan: Plan, tmp_path: Path, method: str
) -> None:
    other = from_windows(torch.randint(0, 60, (4, 12), generator=torch.Generator().manual_seed(0)))
    plan = replace(plan, method=method, steps=40, rate=0.1, evaluate_every=1, patience=3)
    curve = recover_(mixed, examples, other, plan, folder=tmp_path)
    assert curve.points[-1].step == curve.best + 3 < 40
    assert loss_of(mixed, other) == pytest.approx(curve.after, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_improves_the_model_stays_and_a_warning_says_so(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path, method: str
) -> None:
    plan = replace(plan, method=method, rate=5.0)
    before = state_of(mixed)
    with pytest.warns(
        UserWarning, match=r"no validation was better than the one before training .* lower recovery.rate"
    ):
        curve = recover_(mixed, examples, validation, plan, folder=tmp_path)
    assert curve.best == 0
    assert same(mixed.state_dict(), before)


def test_micro_batches_add_up_to_the_batch(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    ragged = of_lengths(examples.ids, [3, 17, 6, 34, 39, 11, 34])
    found: list[tuple[Curve, PreTrainedModel]] = []
    for size in (1, 2, 4):
        model = copy.deepcopy(mixed)
        own = replace(plan, micro_batch=size, dropout=0.0)
        found.append((recover_(model, ragged, validation, own, folder=tmp_path / str(size)), model))
    for curve, model in found[1:]:
        assert [x.training for x in curve.points[1:]] == pytest.approx(
            [x.training for x in found[0][0].points[1:]], rel=1e-4
        )
        torch.testing.assert_close(model.state_dict(), found[0][1].state_dict(), rtol=1e-2, atol=1e-4)


def test_the_losses_are_means_over_scored_tokens(
    mixed: PreTrainedModel, examples: Examples, plan: Plan, tmp_path: Path
) -> None:
    ragged = of_lengths(examples.ids, [3, 17, 6, 34])
    total, count = 0.0, 0
    for index in range(4):
        ids = ragged[index]["input_ids"][None]
        total += float(mixed(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    curve = recover_(mixed, ragged, ragged, replace(plan, steps=1, dropout=0.0), folder=tmp_path)
    assert curve.before == pytest.approx(total / count, rel=1e-5)
    assert curve.points[1].training == pytest.approx(total / count, rel=1e-5)  # the batch holds all four


def test_the_rate_warms_up_and_decays_to_zero(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    curve = recover_(mixed, examples, validation, replace(plan, warmup=0.34), folder=tmp_path)
    assert [point.rate for point in curve.points[1:]] == pytest.approx([0, 0.005, 0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.bfloat16), ("float32", torch.bfloat16), ("bfloat16", torch.float32)]
)
def test_the_model_keeps_its_type_in_every_precision(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    precision: str,
    dtype: torch.dtype,
) -> None:
    curve = recover_(mixed.to(dtype), examples, validation, replace(plan, precision=precision), folder=tmp_path)
    assert {parameter.dtype for parameter in mixed.parameters()} == {dtype}
    assert loss_of(mixed, validation) == pytest.approx(curve.after, rel=0.03)


def test_float16_needs_a_gpu(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match="precision is float16 on cpu, which needs a GPU: take auto, bfloat16 or float32"
    ):
        recover_(mixed, examples, validation, replace(plan, precision="float16"), folder=tmp_path)


def test_the_surroundings_are_as_before(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    attributes, config = set(mixed.__dict__), mixed.config.to_dict()
    drawn, numbers, verbosity = torch.get_rng_state(), np.random.get_state()[1], logging.get_verbosity()
    recover_(mixed, examples, validation, replace(plan, precision="bfloat16", tune="factors"), folder=tmp_path)
    assert set(mixed.__dict__) == attributes
    assert mixed.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), drawn)
    assert np.array_equal(np.random.get_state()[1], numbers)
    assert logging.get_verbosity() == verbosity
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["peft", "accelerate"])
def test_a_missing_package_is_named_with_the_remedy(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(UsageError, match=rf"needs {package}, which is not installed: pip install 'mgaa\[recovery\]'"):
        recover_(mixed, examples, validation, plan, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.slow
def test_the_package_imports_neither_peft_nor_the_trainer() -> None:
    code = "import sys, mgaa.recovery; print({'peft', 'transformers.trainer'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_inputs_that_do_not_fit_the_model_are_refused(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    none = Examples(examples.ids[:0], examples.ids[:0], torch.zeros(1, dtype=torch.int64))
    unscored = Examples(examples.ids, torch.full_like(examples.ids, -100), examples.starts)
    foreign = from_windows(torch.full((2, 5), 64))
    long = from_windows(torch.zeros(1, 65, dtype=torch.int64))
    for given, error, message in (
        ((none, validation), InputError, r"The examples of the recovery are 0 with 0 scored tokens.* give more text"),
        ((examples, none), InputError, r"The validation of the recovery are 0 with 0 scored tokens"),
        ((unscored, validation), InputError, r"The examples of the recovery are 12 with 0 scored tokens"),
        (
            (foreign, validation),
            InputError,
            r"ids run from 64 to 64, but the model has 64 embeddings: use the tokenizer",
        ),
        (
            (examples, long),
            UsageError,
            r"validation of the recovery have up to 65 tokens, the model has 64 positions: low",
        ),
    ):
        with pytest.raises(error, match=message):
            recover_(mixed, *given, plan, folder=tmp_path)
    assert not list(tmp_path.iterdir())
