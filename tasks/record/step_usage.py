"""Usage of the steps of one run: keys, artifacts, code and packages, by step.

Equal content is stored once, under the manifest of the step that made it first. So a manifest names the code that first made an artifact,
and only the run itself knows the code with which it would have made it: a record keeps this table for every step, reused or
executed (tasks/record/run_record.py), and two runs are compared by it (tasks/audit/difference.py).
"""

from collections.abc import Iterable
from typing import Any

from tasks.cache import environment as provenance
from tasks.cache import source
from tasks.cache.executions import Execution
from tasks.record.lineage import full_name


def usage_of(executions: Iterable[Execution]) -> dict[str, dict[str, Any]]:
    """Table by step: its `keys` and `artifacts`, the `sources` of its code by path, its `packages` and `flags`; all sorted."""
    steps: dict[str, list[Execution]] = {}
    for each in executions:
        steps.setdefault(each.task, []).append(each)
    return {task: summarize_step(steps[task]) for task in sorted(steps)}


def summarize_step(executions: list[Execution]) -> dict[str, Any]:
    """Row of one step, whose calls may have used different methods."""
    roots = sorted({root for each in executions for root in each.roots})
    environment = provenance.environment(source.packages(*roots))
    return {
        "keys": sorted({each.key for each in executions}),
        "artifacts": sorted({full_name(each.artifact) for each in executions}),
        "sources": source.sources(*roots),
        "packages": environment.pop("packages"),
        "flags": environment.pop("flags") | environment,
    }
