"""The complete audit: every byte of the store, and a run against everything outside the store that its record names."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.audit.references import derivation
from tasks.audit.verify_dvc import verify_lock
from tasks.audit.verify_run import verify_code, verify_inputs, verify_prepared, verify_published
from tasks.audit.verify_store import StoreCheck, verify_store
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import DamagedError
from tasks.config.parameters import PathSections
from tasks.record.findings import Finding, disagreement
from tasks.record.lineage import Node, ancestry
from tasks.record.run_record import KIND, read_record
from tasks.record.signing import verify_signature


@dataclass(frozen=True)
class Audit:
    """Result of an audit: what was checked, and the findings.

    Attributes:
        seconds: time taken by the check of the store alone.
    """

    store: StoreCheck
    seconds: float
    findings: list[Finding]

    @property
    def disagreements(self) -> list[Finding]:
        """Findings of something wrong."""
        return [each for each in self.findings if each.kind == "disagrees"]

    @property
    def unchecked(self) -> list[Finding]:
        """Findings of something that could not be checked."""
        return [each for each in self.findings if each.kind == "unchecked"]


def audit(params: PathSections, store: Store, root: Artifact | None, signers: Path | None = None) -> Audit:
    """Verify the store and, if `root` is given, that run or all ancestors of that artifact."""
    began = time.perf_counter()
    checked = verify_store(store)
    seconds = time.perf_counter() - began
    findings = [*checked.findings]
    if root is not None:
        if not store.path_of(root).is_dir():
            findings.append(
                disagreement(root, f"is not in the store {store.path}: fetch it with `python -m flows.store pull`")
            )
        else:
            findings += audit_ancestors(params, store, root, signers)
    return Audit(checked, seconds, list(dict.fromkeys(findings)))


def audit_ancestors(params: PathSections, store: Store, root: Artifact, signers: Path | None) -> Iterator[Finding]:
    """Check everything outside the store that `root` was made from."""
    try:
        nodes: dict[Artifact, Node] = ancestry(store, [root], derivation(store, root))
        record = read_record(store, root) if root.kind == KIND else None
    except DamagedError:  # already among the findings of the store
        return
    from tasks.audit.verify_tracking import verify_tracking  # which imports MLflow (seconds)

    yield from verify_code(nodes)
    if record is not None:
        yield from verify_published(params, root, record)
        yield from verify_prepared(params, record)
        yield from verify_inputs(params, record)
        yield from verify_lock(params, root, record)
        yield from verify_tracking(params, store, root, record)
        yield from verify_signature(store, root, signers)
