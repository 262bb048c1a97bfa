"""The figure of the architecture is what the manifests of a run say, whatever the run compressed."""

import runpy

import pytest

from tasks.audit.references import resolve_target
from tasks.cache.artifact import Store
from tasks.config.parameters import load_operation
from tests.support.laboratory import Outcome, TinyProject
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow


def test_the_figure_of_the_architecture_is_that_of_a_run(first: tuple[TinyProject, Outcome]) -> None:
    dataflow, given = runpy.run_path(str(ROOT / "docs" / "dataflow.py")), load_operation(first[0].root / "params.yaml")
    store = Store(given.store_path, given.store.lock_timeout)
    drawn = dataflow["svg"](dataflow["flow_of"](store, resolve_target(given, store, "last")))
    assert drawn == dataflow["FIGURE"].read_text(encoding="utf-8")
