"""Where the guides are followed: one server of Prefect, and a project for each."""

from pathlib import Path

import pytest

from tests.support.guide import scratch


@pytest.fixture
def project(tmp_path: Path, prefect_server: str) -> Path:
    """A small project of the reader's own."""
    return scratch(tmp_path / "project")
