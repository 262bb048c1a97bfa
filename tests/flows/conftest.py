"""One laboratory and one finished run for the session; a test that changes anything works on a copy."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.laboratory import Laboratory, Outcome, build


@pytest.fixture(scope="session")
def empty() -> Iterator[Laboratory]:
    """A laboratory where nothing has run yet; look, and copy it."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users, as one test becomes
        Path(folder).chmod(0o755)
        yield build(Path(folder) / "essai d'été", Path(folder) / "model")  # spaces, quotes, accents are legal in paths


@pytest.fixture(scope="session")
def first(empty: Laboratory, prefect_server: str) -> tuple[Laboratory, Outcome]:
    """The laboratory after the first run, and what that run told; look, and copy it."""
    return empty, empty.run()


@pytest.fixture
def fresh(empty: Laboratory, tmp_path: Path, prefect_server: str) -> Laboratory:
    """A laboratory of the test's own with an empty store."""
    return empty.copy(tmp_path / "fresh", store=False)


@pytest.fixture
def done(first: tuple[Laboratory, Outcome], tmp_path: Path) -> Laboratory:
    """A laboratory of the test's own after the first run."""
    return first[0].copy(tmp_path / "done")
