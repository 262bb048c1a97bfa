"""What the steps of one run used: keys, artifacts, code and packages, by step.

Equal content is stored once, under the manifest of whoever made it first. So a manifest tells with what code an artifact was made for the
first time, and only the run itself can tell with what code it would have made it: a record keeps this table for every step, reused or
executed (tasks/record/run_record.py), and two runs are compared by it (tasks/audit/difference.py).
"""

from collections.abc import Iterable
from typing import Any

from tasks.cache import environment as provenance
from tasks.cache import source
from tasks.cache.executions import Execution
from tasks.record.lineage import name


def usage_of(executions: Iterable[Execution]) -> dict[str, dict[str, Any]]:
    """By step: its `keys` and `artifacts`, the `sources` of its code by path, its `packages` and `flags`; all sorted."""
    steps: dict[str, list[Execution]] = {}
    for each in executions:
        steps.setdefault(each.task, []).append(each)
    return {task: used(steps[task]) for task in sorted(steps)}


def used(executions: list[Execution]) -> dict[str, Any]:
    """The row of one step, whose calls may have chosen different methods."""
    roots = sorted({root for each in executions for root in each.roots})
    environment = provenance.environment(source.packages(*roots))
    return {
        "keys": sorted({each.key for each in executions}),
        "artifacts": sorted({name(each.artifact) for each in executions}),
        "sources": source.sources(*roots),
        "packages": environment.pop("packages"),
        "flags": environment.pop("flags") | environment,
    }
