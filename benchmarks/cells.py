"""Cells of long tables: what each took, and an output that is complete after every cell, so that a killed run resumes at the next."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel

T = TypeVar("T")


def parameters(model: PreTrainedModel) -> int:
    """Number of parameters of a model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def timed(work: Callable[[], T]) -> tuple[dict[str, float], T]:
    """Seconds of a call, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}, result


def content_of(path: Path) -> dict[str, Any]:
    """What an earlier run kept; empty if there was none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def kept(path: Path, content: dict[str, Any]) -> None:
    """Write the output atomically, so that a killed run leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(scratch, path)
