"""What does not go together is refused by one table, which the documentation prints."""

import subprocess
import sys

import pytest

from mgaa.errors import UsageError
from tasks.config.compatibility import (
    RULES,
    Rule,
    check_compatibility,
    combinations_reference,
    combinations_table,
    subject,
)
from tasks.config.conditions import holds
from tasks.config.parameters import load_parameters
from tests.support.processes import ROOT

FILE = ROOT / "params.yaml"
OVERRIDES = {
    "data.evaluation.protocol!=null": ["data.evaluation.protocol=ptb"],
    "data.evaluation.form=chat": ["data.evaluation.form=chat", "data.evaluation.source=a.jsonl"],
    "data.evaluation.stride!=null": ["data.evaluation.stride=64", "data.evaluation.source=a.jsonl"],
    "statistics.shards!=1": ["statistics.shards=4"],
    "runner.address!=null": ["runner.address=tcp://host:8786"],
    "runner.workers!=auto": ["runner.kind=dask", "runner.workers=3"],
    "ranks.objective=latency": ["ranks.objective=latency", "ranks.profile=a.json"],
    "ranks.objective!=parameters": ["ranks.objective=latency", "ranks.profile=a.json"],
    "ranks.profile=null": ["ranks.profile=null"],
    "search.method!=none": ["search.method=gp", "method=bolaco"],
    "search.method=random": ["search.method=random", "method=bolaco"],
    "search.method!=gp": ["search.method=random", "method=bolaco"],
    "search.history!=null": ["search.history=a.json"],
    "ranks.method=file": ["ranks.method=file", "ranks.path=a.json"],
    "evaluation.baselines has random": ["evaluation.baselines=[random]"],
    "statistics.inputs!=dense": ["statistics.inputs=compressed"],
    "channels.method!=none": ["channels.method=weighted"],
    "anchor.method!=none": ["anchor.method=stream"],
    "refinement.method!=none": ["refinement.method=adam"],
    "recovery.method!=none": ["recovery.method=lora"],
    "flows.search": ["search.method=gp"],
    "backbone.parts!=decoder": ["backbone.parts=[decoder,vision]"],
    "factors.method is gradients": ["factors.method=kronecker"],
    "ranks.method is whole_model": ["ranks.method=loss"],
}
"""What makes a condition hold, where it is not an override itself."""


def overrides_for(condition: str) -> list[str]:
    """Overrides under which a condition holds."""
    return OVERRIDES.get(condition, [] if condition.startswith("flows.") else [condition])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{subject(rule)}-{rule.excludes}")
def test_every_row_is_refused_with_its_value_reason_and_remedy(rule: Rule) -> None:
    conditions = [*subject(rule).split(" and "), rule.excludes]
    overrides = [override for condition in conditions for override in overrides_for(condition)]
    with pytest.raises(UsageError) as caught:
        check_compatibility(load_parameters(FILE, overrides).flat(), (rule.flows or (None,))[0])
    assert str(caught.value).startswith(rule.excludes.partition("!")[0].partition("=")[0].partition(" ")[0])
    assert f" {rule.because}: {rule.remedy}." in str(caught.value)


@pytest.mark.parametrize("flow", ["compress", "plan", "sensitivity", "sweep", None])
def test_the_parameters_of_the_project_go_together(flow: str | None) -> None:
    check_compatibility(load_parameters(FILE).flat(), flow)


@pytest.mark.parametrize("method", ["mgaa", "lorap", "bolaco", "loss"])
def test_every_method_of_the_project_goes_together(method: str) -> None:
    check_compatibility(load_parameters(FILE, [f"method={method}"]).flat(), "compress")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.factors=[svd,kronecker]", "sweep.factors.1: factors.method is 'kronecker', but with statistics.gradi"),
        ("sweep.ranks=[uniform,{method: energy, objective: latency}]", "sweep.ranks.1: ranks.profile is None, but"),
    ],
)
def test_an_entry_of_a_sweep_is_checked_like_its_section(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_compatibility(load_parameters(FILE, [override]).flat(), "sweep")


SETTINGS = {"a.b": "x", "a.c": None, "a.d": True, "a.e": ["y", "z"], "factors.method": "pooled"}


@pytest.mark.parametrize(
    ("true", "false"),
    [
        ("a.b=x", "a.b=y"),
        ("a.b!=y", "a.b!=x"),
        ("a.c=null", "a.c!=null"),
        ("a.d=true", "a.d=false"),
        ("a.e has z", "a.e has x"),
        ("factors.method is grouped", "factors.method is gradients"),
        ("a.b=x and a.c=null", "a.b=x and a.c!=null"),
        ("", "a.e=y"),
    ],
)
def test_a_condition_is_about_a_value_an_entry_or_a_trait(true: str, false: str) -> None:
    assert holds(true, SETTINGS)
    assert not holds(false, SETTINGS)


def test_the_documentation_prints_the_table() -> None:
    assert combinations_table() in (ROOT / "docs" / "combinations.md").read_text()
    assert len([*combinations_reference()]) == len(RULES)


def test_a_combination_is_refused_without_prefect_and_torch() -> None:
    code = """
import sys
from flows.command.cli import main
assert main("flows.sweep:sweep", ["recovery.method=lora"]) == 2
assert main("flows.compress:compress", ["--help"]) == 0
assert not {"prefect", "torch", "transformers", "flows.compress", "flows.sweep"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        0,
        "error: recovery.method is 'lora', but flows.sweep compares factors and ranks alone: set recovery.method=none, or compress the "
        "models one by one (flows.compress).\n",
    )
