"""The table of settings that exclude each other, one row each, with the reason and the remedy.

A command checks it before its flow is imported, the flow again before it computes; `--help` and docs/combinations.md print it. What the
numbers of a single section require of each other stands in its class (tasks/config/sections/).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mgaa.errors import UsageError
from tasks.config.conditions import Settings, as_text, holds, parse_condition
from tasks.config.method_options import SECTIONS


@dataclass(frozen=True)
class Rule:
    """A row: if `when` holds, `excludes` must not.

    Attributes:
        when, excludes: conditions (tasks/config/conditions.py); `when` is empty if the flows themselves exclude something.
        because: the reason, a clause that follows `when` or the flow.
        remedy: what to set instead.
        flows: the flows that check the row; empty for all, when the parameters are loaded.
    """

    when: str
    excludes: str
    because: str
    remedy: str
    flows: tuple[str, ...] = ()


COMPRESSING = ("compress", "plan", "search", "sensitivity")
NO_DECOMPOSITION = "compares models that share one decomposition, which dense inputs alone allow"

RULES = (
    Rule(
        "data.evaluation.protocol!=null",
        "data.evaluation.source=demo",
        "the rows of a data set are needed",
        "set data.evaluation.source to its test split: a file of rows, the text file, or the Hub's data set (docs/data.md), or "
        "data.evaluation.protocol=null",
    ),
    Rule(
        "data.evaluation.protocol!=null",
        "data.evaluation.form=chat",
        "rows of text are joined",
        "set data.evaluation.form=text, or data.evaluation.protocol=null",
    ),
    Rule(
        "data.evaluation.protocol!=null",
        "data.evaluation.stride!=null",
        "windows lie back to back",
        "set data.evaluation.stride=null, or data.evaluation.protocol=null",
    ),
    Rule(
        "statistics.inputs=compressed",
        "statistics.shards!=1",
        "each block waits for the one before it",
        "set statistics.shards=1, or statistics.inputs=dense",
    ),
    Rule(
        "statistics.inputs=compressed",
        "statistics.gradients=true",
        "the gradients of the dense model cannot be measured",
        "set statistics.gradients=false, or statistics.inputs=dense",
    ),
    Rule(
        "runner.kind=threads",
        "runner.address!=null",
        "the steps run in this process",
        "set runner.kind=dask or ray, or runner.address=null",
    ),
    Rule(
        "runner.address!=null",
        "runner.workers!=auto",
        "the workers are those of the cluster",
        "set runner.workers=auto, or runner.address=null",
    ),
    Rule(
        "ranks.objective=latency",
        "ranks.profile=null",
        "the times of the target device are needed",
        "measure them with `python -m flows.profile_device`, and set ranks.profile=results/latency.json",
    ),
    Rule(
        "",
        "search.method!=gp",
        "compares the Gaussian process with random search",
        "set method=bolaco, or search.method=gp",
        ("search",),
    ),
    Rule(
        "",
        "recovery.method!=none",
        "compares allocations",
        "set recovery.method=none, or recover one model (flows.compress)",
        ("search",),
    ),
    Rule(
        "",
        "ranks.objective!=parameters",
        "compares types of matrices at equal parameters",
        "set ranks.objective=parameters",
        ("sensitivity",),
    ),
    Rule("", "statistics.inputs!=dense", NO_DECOMPOSITION, "set statistics.inputs=dense", ("sensitivity",)),
    Rule(
        "",
        "statistics.inputs!=dense",
        NO_DECOMPOSITION,
        "set statistics.inputs=dense, or compress the models one by one (flows.compress)",
        ("sweep",),
    ),
    *(
        Rule(
            "",
            f"{section}.method!=none",
            "compares factors and ranks alone",
            f"set {section}.method=none, or compress the models one by one (flows.compress)",
            ("sweep",),
        )
        for section in ("anchor", "channels", "search", "recovery")
    ),
    Rule(
        "search.method=none",
        "evaluation.baselines has random",
        "nothing is searched",
        "leave it out, or set method=bolaco",
        COMPRESSING,
    ),
    Rule(
        "search.method!=none",
        "ranks.objective!=parameters",
        "only parameters are counted",
        "set ranks.objective=parameters, or search.method=none",
        COMPRESSING,
    ),
    *(
        Rule(
            "search.method!=none",
            f"{key}!={value}",
            "all trials are slices of one decomposition",
            f"set {key}={value}, or search.method=none",
            COMPRESSING,
        )
        for key, value in (("statistics.inputs", "dense"), ("channels.method", "none"), ("anchor.method", "none"))
    ),
    Rule(
        "search.method!=none",
        "method=mgaa",
        "the ranks are not those of MGAA",
        "set method=bolaco, or give the search a name of its own under methods",
        COMPRESSING,
    ),
    Rule(
        "search.method=random",
        "search.history!=null",
        "earlier trials are not used",
        "leave it out, or set search.method=gp",
        COMPRESSING,
    ),
    Rule(
        "search.method!=none",
        "ranks.method=file",
        "the search finds the ranks",
        "set search.method=none to use those of the file, or take another ranks.method",
        COMPRESSING,
    ),
    Rule(
        "search.method!=none",
        "backbone.parts!=decoder",
        "only the ranks of the decoder are varied",
        "set backbone.parts=[decoder], or search.method=none",
        COMPRESSING,
    ),
    Rule(
        "statistics.inputs=compressed",
        "backbone.parts!=decoder",
        "only the decoder is compressed, block after block",
        "set backbone.parts=[decoder], or statistics.inputs=dense",
        COMPRESSING,
    ),
    Rule(
        "channels.method!=none",
        "backbone.parts!=decoder",
        "only the FFNs of the decoder can be pruned",
        "set backbone.parts=[decoder], or channels.method=none",
        COMPRESSING,
    ),
    Rule(
        "anchor.method!=none",
        "statistics.inputs!=dense",
        "the ranks come from dense inputs",
        "set statistics.inputs=dense, or anchor.method=none",
        COMPRESSING,
    ),
    Rule(
        "anchor.method!=none",
        "channels.method!=none",
        "the FFNs are factorized like everything else",
        "set channels.method=none, or anchor.method=none",
        COMPRESSING,
    ),
    Rule(
        "anchor.method!=none",
        "backbone.parts!=decoder",
        "only the decoder is fitted",
        "set backbone.parts=[decoder], or anchor.method=none",
        COMPRESSING,
    ),
    Rule(
        "anchor.method=none",
        "refinement.method!=none",
        "there are no anchored blocks to tune",
        "set anchor.method=stream, take method=loss, or set refinement.method=none",
        COMPRESSING,
    ),
    Rule(
        "statistics.inputs=compressed",
        "factors.method is gradients",
        "the gradients of the dense model that it weights errors by cannot be measured",
        "set statistics.inputs=dense, or take another factors.method",
        COMPRESSING,
    ),
    Rule(
        "statistics.gradients=false",
        "factors.method is gradients",
        "the output gradients that it weights errors by are not measured",
        "set statistics.gradients=true, take method=loss, or another factors.method",
        (*COMPRESSING, "sweep"),
    ),
    Rule(
        "statistics.inputs=compressed",
        "ranks.method is whole_model",
        "the ranks are found block after block, and this rule is for all matrices of the model at once",
        "set statistics.inputs=dense, or take another ranks.method",
        COMPRESSING,
    ),
    Rule(
        "channels.method!=none",
        "ranks.method=file",
        "the FFNs are pruned, and the ranks of a file are for all matrices of the model",
        "set channels.method=none, or take another ranks.method",
        ("compress", "plan"),
    ),
    Rule(
        "channels.method!=none",
        "ranks.objective=latency",
        "the FFNs become narrower, and a profile has no times of narrower matrices",
        "set channels.method=none, or ranks.objective=parameters",
        ("compress", "plan"),
    ),
    Rule(
        "ranks.objective=latency and recovery.method=lora",
        "recovery.tune=product",
        "the ranks are chosen to be faster than dense, and this raises every one by that of LoRA",
        "set recovery.tune=factors, or ranks.objective=parameters",
        COMPRESSING,
    ),
)


def check_compatibility(settings: Settings, flow: str | None = None) -> None:
    """Refuse settings that exclude each other.

    Args:
        settings: of `Parameters.flat`.
        flow: the flow that will run; by default only the rows of all flows are checked.

    Raises:
        UsageError: the first row that is violated.
    """
    for rule in RULES:
        if flow in rule.flows if flow else not rule.flows:
            for where, variant in variants(rule, settings, flow):
                if holds(rule.when, variant) and holds(rule.excludes, variant):
                    raise UsageError(f"{where}{explain(rule, variant, flow)}")


def variants(rule: Rule, settings: Settings, flow: str | None) -> Iterator[tuple[str, Settings]]:
    """The settings; where a sweep varies a section of the rule, those with each of its entries instead of the section."""
    varied = [section for section in SECTIONS if f"{section}." in f"{rule.when} {rule.excludes}"]
    if flow != "sweep" or not varied:
        yield "", settings
    for section in varied if flow in (None, "sweep") else ():
        for index, entry in enumerate(settings[f"sweep.{section}"]):
            yield f"sweep.{section}.{index}: ", {**settings, **{f"{section}.{key}": entry[key] for key in entry}}


def explain(rule: Rule, settings: Settings, flow: str | None) -> str:
    """The value, the reason and the remedy, in one message."""
    excluded = parse_condition(rule.excludes)
    key, value = excluded["key"], settings[excluded["key"]]
    given = f"has {excluded['value']}" if excluded["operator"] == " has " else f"is {value!r}"
    causes = [parse_condition(condition)["key"] for condition in rule.when.split(" and ") if condition]
    cause = " and ".join(f"{name}={as_text(settings[name])}" for name in causes)
    return f"{key} {given}, but {f'with {cause}' if cause else f'flows.{flow}'} {rule.because}: {rule.remedy}."


def combinations_reference() -> Iterator[str]:
    """Lines of `--help` about settings that exclude each other."""
    for rule in RULES:
        yield f"{subject(rule)} excludes {rule.excludes}: {rule.because}"


def combinations_table() -> str:
    """The table in Markdown (docs/combinations.md)."""
    rows = [f"| `{subject(rule)}` | `{rule.excludes}` | {rule.because} | {rule.remedy} |" for rule in RULES]
    return "\n".join(["| setting or flow | excludes | because | remedy |", "|---|---|---|---|", *rows, ""])


def subject(rule: Rule) -> str:
    """The left side of a row: settings, or flows."""
    return rule.when or ", ".join(f"flows.{flow}" for flow in rule.flows)
