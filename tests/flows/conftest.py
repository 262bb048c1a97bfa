"""One laboratory and one finished run for the session; a test that changes anything works on a copy."""

from pathlib import Path

import pytest

from tests.flows.laboratory import Laboratory, Outcome, build


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """A laboratory where nothing has run yet; look, and copy it."""
    folder = tmp_path_factory.mktemp("laboratory")
    return build(folder / "essai d'été", folder / "model")  # spaces, quotes and accents are legal in paths


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
