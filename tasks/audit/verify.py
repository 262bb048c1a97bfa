"""An audit: every byte of the store, and runs against all that they name outside it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.audit.references import derivation
from tasks.audit.verify_dvc import verify_lock
from tasks.audit.verify_run import verify_code, verify_inputs, verify_prepared, verify_published
from tasks.audit.verify_store import Checked, verify_store
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import DamagedError
from tasks.config.parameters import Placed
from tasks.record.findings import Finding, disagrees
from tasks.record.lineage import Node, ancestry
from tasks.record.run_record import KIND, read_record
from tasks.record.signing import verify_signature


@dataclass(frozen=True)
class Audit:
    """What was looked at, and what was found.

    Attributes:
        seconds: of the store alone.
    """

    store: Checked
    seconds: float
    findings: list[Finding]

    @property
    def disagreements(self) -> list[Finding]:
        """What is wrong."""
        return [each for each in self.findings if each.kind == "disagrees"]

    @property
    def unchecked(self) -> list[Finding]:
        """What could not be looked at."""
        return [each for each in self.findings if each.kind == "unchecked"]


def audit(p: Placed, store: Store, root: Artifact | None, signers: Path | None = None) -> Audit:
    """Verify the store and, where `root` is given, the run of that name or everything else behind that artifact."""
    began = time.perf_counter()
    checked = verify_store(store)
    seconds = time.perf_counter() - began
    findings = [*checked.findings]
    if root is not None:
        if not store.place(root).is_dir():
            findings.append(
                disagrees(root, f"is not in the store {store.path}: fetch it with `python -m flows.store pull`")
            )
        else:
            findings += behind(p, store, root, signers)
    return Audit(checked, seconds, list(dict.fromkeys(findings)))


def behind(p: Placed, store: Store, root: Artifact, signers: Path | None) -> Iterator[Finding]:
    """What is wrong outside the store with what `root` was made from."""
    try:
        nodes: dict[Artifact, Node] = ancestry(store, [root], derivation(store, root))
        record = read_record(store, root) if root.kind == KIND else None
    except DamagedError:  # told already
        return
    from tasks.audit.verify_tracking import verify_tracking  # which imports MLflow (seconds)

    yield from verify_code(nodes)
    if record is not None:
        yield from verify_published(p, root, record)
        yield from verify_prepared(p, record)
        yield from verify_inputs(p, record)
        yield from verify_lock(p, root, record)
        yield from verify_tracking(p, store, root, record)
        yield from verify_signature(store, root, signers)
