"""Models are read back from their files: by every step anew, or once for the steps of a block."""

import pytest

from tasks.artifacts.models import load_artifact, share_models
from tests.support.finished import Finished, finished_run


@pytest.fixture(scope="module")
def run() -> Finished:
    return finished_run()


def test_every_call_reads_a_model_of_its_own(run: Finished) -> None:
    models = [load_artifact(run.store, run.results.backbone, "cpu")[0] for _ in range(2)]
    assert models[0] is not models[1]


def test_inside_the_block_a_model_is_read_once(run: Finished) -> None:
    checkpoint = run.results.models["mgaa"].checkpoint
    with share_models():
        first = load_artifact(run.store, checkpoint, "cpu")
        assert load_artifact(run.store, checkpoint, "cpu") is first
        other = load_artifact(run.store, run.results.backbone, "cpu")
        assert other[0] is not first[0]
    with share_models():
        assert load_artifact(run.store, checkpoint, "cpu") is not first
