"""Where a result comes from: walked offline from the manifests, and the facts of the run that are in none of them.

A manifest names its inputs by digest, so from a checkpoint one reaches ranks, ratios, spectra, statistics, tokens, texts and backbone,
with the code, the parameters and the commit of each. Nothing is looked up anywhere else: a copy of the store tells the same.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks import provenance
from tasks.artifact import Artifact, Store
from tasks.code import code_digest

TOLD = ("task", "inputs", "parameters", "code", "git", "versions", "device", "start", "end", "seconds")
DVC = {"dvc.stage": "DVC_STAGE", "dvc.experiment": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}


def lineage(store: Store, artifacts: Iterable[Artifact]) -> dict[str, dict[str, Any]]:
    """What the manifests of `artifacts` and of everything behind them tell, by `kind/digest`, inputs before what is made from them."""
    found: dict[str, dict[str, Any]] = {}
    for artifact in artifacts:
        _walk(store, artifact, found)
    return found


def _walk(store: Store, artifact: Artifact, found: dict[str, dict[str, Any]]) -> None:
    if name(artifact) not in found:
        manifest = store.manifest(artifact)
        inputs = {role: list(_named(value)) for role, value in manifest["inputs"].items()}
        for behind in (each for artifacts in inputs.values() for each in artifacts):
            _walk(store, behind, found)
        told = {key: manifest[key] for key in TOLD if key in manifest}
        found[name(artifact)] = {
            **told,
            "inputs": {role: [name(each) for each in given] for role, given in inputs.items()},
        }


def _named(value: Any) -> Iterator[Artifact]:
    for given in [value] if isinstance(value, Mapping) else value:
        yield Artifact(given["kind"], given["digest"])


def name(artifact: Artifact) -> str:
    """An artifact in full."""
    return f"{artifact.kind}/{artifact.digest}"


def run_facts() -> dict[str, str]:
    """What this process knows of its run: commit, whether tracked files differ from it, code, Prefect's run, DVC's stage and experiment."""
    git = dict(provenance.git())
    facts = {
        "git.commit": git["commit"],
        "git.dirty": None if git["dirty"] is None else str(git["dirty"]).lower(),
        "code": code_digest(),
        "prefect.flow_run": flow_run(),
        **{tag: os.environ.get(variable) for tag, variable in DVC.items()},
    }
    return {tag: str(value) for tag, value in facts.items() if value}


def flow_run() -> str | None:
    """The id of the Prefect flow run that this is called in, if there is one."""
    if "prefect" not in sys.modules:
        return None
    from prefect.runtime import flow_run

    return None if flow_run.id is None else str(flow_run.id)
