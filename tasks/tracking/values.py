"""Numbers, parameters and tags of a run in the form that MLflow accepts."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

VALUE = 5000
"""Maximum characters of a value; MLflow accepts 6000 for a parameter and 8000 for a tag."""


def measurements(metrics: Mapping[str, Any], allocations: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a run by name: `perplexity/<model>`, `tasks/<model>/<task>/acc`, `ratio/<model>/<sublayer>` and so on.

    A matrix that stays dense has the rank `min(m, n)`; one of a pruned FFN has a width instead.
    """
    found = {
        f"{key.replace('_', '/')}/{name}": value
        for allocation in allocations.values()
        for name, each in allocation["sublayers"].items()
        for key, value in each.items()
        if key.startswith("cosine") and value is not None
    }
    for model, allocation in allocations.items():
        for name, each in allocation["sublayers"].items():
            found[f"ratio/{model}/{name}"] = each["ratio"]
        for each in allocation["matrices"].values():
            name = f"{model}/{each['block']}.{each['matrix']}"
            if "width" in each:
                found[f"width/{name}"] = each["width"]
            else:
                found[f"rank/{name}"] = min(each["m"], each["n"]) if each["rank"] is None else each["rank"]
            found[f"energy/{name}"] = each["energy"]
        found[f"slack/{model}"] = allocation["slack"]
    for model, entry in metrics["models"].items():
        found |= {
            f"{key}/{model}{rest}": value for key, given in entry.items() for rest, value in flatten_numbers(given)
        }
    for name, models in metrics.get("comparison", {}).items():
        found |= {
            f"above_uniform/{model}/{name}/{key}": value
            for model, each in models.items()
            for key, value in each.items()
        }
    found |= {
        f"run/{key}": value for key, given in metrics.get("run", {}).items() for _, value in flatten_numbers(given)
    }
    return {name: float(value) for name, value in found.items()}


def points_of(curve: Mapping[str, Any]) -> Iterator[tuple[str, int, float]]:
    """Iterate over the points of a recovery: name of the metric, optimizer step, value."""
    for point in curve.get("points", []):
        for key in ("training", "validation", "rate"):
            if point[key] is not None:
                yield f"recovery/{key}", point["step"], point[key]


def metrics_of(values: Mapping[str, float]) -> list[Any]:
    """Convert numbers to MLflow metrics with the current time."""
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    return [Metric(legal_name(name), value, now, 0) for name, value in values.items()]


def params_of(values: Mapping[str, Any]) -> list[Any]:
    """Convert parameters to MLflow parameters, as text."""
    from mlflow.entities import Param

    return [Param(legal_name(key), truncate(format_value(value))) for key, value in values.items()]


def flatten_numbers(given: Any, above: str = "") -> Iterator[tuple[str, float]]:
    """Iterate over the numbers of a nested table, with their paths."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            yield from flatten_numbers(value, f"{above}/{key}")
    elif isinstance(given, int | float) and not isinstance(given, bool):
        yield above, given


def legal_name(name: str) -> str:
    """Reduce a name to the characters and the length that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def format_value(value: Any) -> str:
    """Format a parameter as text, as in `params.yaml`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def truncate(value: str) -> str:
    """Truncate a value to what MLflow accepts; the complete one is in `parameters.json` or in the message on the terminal."""
    return value if len(value) <= VALUE else f"{value[: VALUE - 3]}..."
