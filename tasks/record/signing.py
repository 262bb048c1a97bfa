"""Signatures of runs, in the format of OpenSSH.

A record names all ancestors of a run's results by digest, so one signature over its bytes covers all of them. `ssh-keygen -Y sign` makes
it, with any key that OpenSSH supports (files, agents, hardware keys), and `ssh-keygen -Y verify` checks it against a file of allowed
signers in the format that git uses: lines of `name@example.org ssh-ed25519 AAAA...`. Only the path of the signature is ours:
`store/signatures/<digest of the run>.sig`.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from mgaa.errors import InputError, ResourceError
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import write_file
from tasks.cache.manifest import RECORD, RUN
from tasks.record.findings import Finding, disagreement, unchecked

NAMESPACE = "mgaa"
"""Purpose of the signature: one that was made for another purpose does not verify."""


def signature(store: Store, run: Artifact) -> Path:
    """Path of the signature of a run."""
    return store.path / "signatures" / f"{run.digest}.sig"


def sign(store: Store, run: Artifact, key: Path) -> Path:
    """Sign the record of a run; an existing signature is replaced.

    Args:
        key: a private key, or the public half of a key that an agent holds.

    Raises:
        InputError: the artifact is not a run, or the key cannot sign.
    """
    if run.kind != RUN:
        raise InputError(f"{run} is no run, expected one: sign the run that made it, such as `last` or mlflow:<run>.")
    write_file(signature(store, run), make_signature(key, (store.folder(run) / RECORD).read_bytes()))
    return signature(store, run)


def check_key(key: str | None) -> None:
    """Test the key of `store.signing_key`, before hours of computation end without a signature.

    Raises:
        InputError: the key cannot sign.
        ResourceError: OpenSSH is not installed.
    """
    if key is not None:
        make_signature(Path(key), b"a run of mgaa")


def make_signature(key: Path, content: bytes) -> bytes:
    """Sign these bytes."""
    done = run_ssh_keygen("sign", "-n", NAMESPACE, "-f", str(key.expanduser()), given=content)
    if done.returncode:
        raise InputError(
            f"{key} cannot sign ({' '.join(done.stderr.decode().split()) or 'no output'}): expected a private key of OpenSSH, or "
            "the public one of a key in the agent, such as --key ~/.ssh/id_ed25519."
        )
    return done.stdout


def verify_signature(store: Store, run: Artifact, signers: Path | None) -> Iterator[Finding]:
    """Check that one of the allowed signers has signed the run; without `signers`, only that there is a valid signature of an unknown
    signer.
    """
    path = signature(store, run)
    if not path.is_file():
        yield (unchecked if signers is None else disagreement)(run, f"is not signed: there is no {path}")
        return
    record = (store.path_of(run) / RECORD).read_bytes()
    if signers is None:
        done = run_ssh_keygen("check-novalidate", "-n", NAMESPACE, "-s", str(path), given=record)
        if done.returncode:
            yield disagreement(path, "is no signature of this record")
        else:
            yield unchecked(run, f"is signed ({done.stdout.decode().strip()}); --signers shows by whom")
        return
    if not signers.expanduser().is_file():
        raise InputError(
            f"There is no {signers}: expected allowed signers, a line `name@example.org ssh-ed25519 AAAA...` each."
        )
    known = run_ssh_keygen("find-principals", "-s", str(path), "-f", str(signers.expanduser()))
    who = known.stdout.decode().split("\n")[0]
    done = run_ssh_keygen(
        "verify", "-n", NAMESPACE, "-s", str(path), "-f", str(signers.expanduser()), "-I", who, given=record
    )
    if known.returncode or done.returncode:
        yield disagreement(path, f"is no signature of {run} by one of {signers}")


def find_signer(store: Store, run: Artifact, signers: Path) -> str | None:
    """Name of the signer of a run, by the allowed signers; None if it is unknown."""
    done = run_ssh_keygen("find-principals", "-s", str(signature(store, run)), "-f", str(signers.expanduser()))
    return done.stdout.decode().split("\n")[0] if done.returncode == 0 else None


def run_ssh_keygen(verb: str, *options: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `ssh-keygen -Y`.

    Raises:
        ResourceError: OpenSSH is not installed.
    """
    try:
        return subprocess.run(["ssh-keygen", "-Y", verb, *options], input=given, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise ResourceError("There is no ssh-keygen, which signs and verifies: install OpenSSH's client.") from error
