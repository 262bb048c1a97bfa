"""Who says so: signatures of runs, in the format of OpenSSH.

A record names everything behind a run by digest, so one signature over its bytes covers all of it. `ssh-keygen -Y sign` makes it, with any
key that OpenSSH knows (files, agents, hardware keys), and `ssh-keygen -Y verify` checks it against a file of allowed signers, the one that
git uses: a line `name@example.org ssh-ed25519 AAAA...` each. Nothing of it is ours but where the signature lies:
`store/signatures/<digest of the run>.sig`.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from mgaa.errors import InputError, ResourceError
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import write_file
from tasks.cache.manifest import RECORD, RUN
from tasks.record.findings import Finding, disagrees, unchecked

NAMESPACE = "mgaa"
"""What the signature is for: one that was made for something else does not verify."""


def signature(store: Store, run: Artifact) -> Path:
    """Where the signature of a run lies."""
    return store.path / "signatures" / f"{run.digest}.sig"


def sign(store: Store, run: Artifact, key: Path) -> Path:
    """Sign the record of a run; a signature that is there is replaced.

    Args:
        key: a private key, or the public one of a key that an agent holds.

    Raises:
        InputError: what is to be signed is no run, or the key cannot sign.
    """
    if run.kind != RUN:
        raise InputError(f"{run} is no run, expected one: sign the run that made it, such as `last` or mlflow:<run>.")
    write_file(signature(store, run), made_by(key, (store.folder(run) / RECORD).read_bytes()))
    return signature(store, run)


def check_key(key: str | None) -> None:
    """Try the key of `store.signing_key`, before hours of computation end without a signature.

    Raises:
        InputError: it cannot sign.
        ResourceError: there is no OpenSSH.
    """
    if key is not None:
        made_by(Path(key), b"a run of mgaa")


def made_by(key: Path, content: bytes) -> bytes:
    """The signature of these bytes."""
    done = openssh("sign", "-n", NAMESPACE, "-f", str(key.expanduser()), given=content)
    if done.returncode:
        raise InputError(
            f"{key} cannot sign ({' '.join(done.stderr.decode().split()) or 'no more is said'}): expected a private key of OpenSSH, or "
            "the public one of a key in the agent, such as --key ~/.ssh/id_ed25519."
        )
    return done.stdout


def verify_signature(store: Store, run: Artifact, signers: Path | None) -> Iterator[Finding]:
    """Whether one of the allowed signers has signed the run; without `signers`, that a signature is there and of whom is not known."""
    path = signature(store, run)
    if not path.is_file():
        yield (unchecked if signers is None else disagrees)(run, f"is not signed: there is no {path}")
        return
    record = (store.place(run) / RECORD).read_bytes()
    if signers is None:
        done = openssh("check-novalidate", "-n", NAMESPACE, "-s", str(path), given=record)
        if done.returncode:
            yield disagrees(path, "is no signature of this record")
        else:
            yield unchecked(run, f"is signed ({done.stdout.decode().strip()}); by whom, --signers tells")
        return
    if not signers.expanduser().is_file():
        raise InputError(
            f"There is no {signers}: expected allowed signers, a line `name@example.org ssh-ed25519 AAAA...` each."
        )
    known = openssh("find-principals", "-s", str(path), "-f", str(signers.expanduser()))
    who = known.stdout.decode().split("\n")[0]
    done = openssh("verify", "-n", NAMESPACE, "-s", str(path), "-f", str(signers.expanduser()), "-I", who, given=record)
    if known.returncode or done.returncode:
        yield disagrees(path, f"is no signature of {run} by one of {signers}")


def signer(store: Store, run: Artifact, signers: Path) -> str | None:
    """The name of who signed a run, by the allowed signers; null where it is not known."""
    done = openssh("find-principals", "-s", str(signature(store, run)), "-f", str(signers.expanduser()))
    return done.stdout.decode().split("\n")[0] if done.returncode == 0 else None


def openssh(verb: str, *options: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `ssh-keygen -Y`.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        return subprocess.run(["ssh-keygen", "-Y", verb, *options], input=given, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise ResourceError("There is no ssh-keygen, which signs and verifies: install OpenSSH's client.") from error
