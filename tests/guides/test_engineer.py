"""The guide of who serves a model, executed; that latency decides where it can is in tests/flows/test_profile_device.py, on times that
are the same everywhere, and the harness runs in tests/mgaa/models/test_entries.py, on a task that needs no download."""

from pathlib import Path

import pytest

from tests.support.guide import Reader

pytestmark = pytest.mark.slow


def test_what_the_guide_says_is_what_happens(project: Path) -> None:
    Reader(project, elsewhere=["ranks.objective=latency", "mgaa lm_eval"]).follow("engineer.md")
