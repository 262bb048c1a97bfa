"""The figure of the architecture is what the manifests of a run say, whatever the run compressed."""

import runpy

from tasks.audit.references import resolve
from tasks.cache.artifact import Store
from tasks.config.parameters import load_operation
from tests.support.laboratory import Laboratory, Outcome
from tests.support.processes import ROOT


def test_the_figure_of_the_architecture_is_that_of_a_run(first: tuple[Laboratory, Outcome]) -> None:
    dataflow, given = runpy.run_path(str(ROOT / "docs" / "dataflow.py")), load_operation(first[0].root / "params.yaml")
    store = Store(given.store_path, given.store.lock_timeout)
    drawn = dataflow["svg"](dataflow["flow_of"](store, resolve(given, store, "last")))
    assert drawn == dataflow["FIGURE"].read_text(encoding="utf-8")
