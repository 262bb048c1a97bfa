"""Real servers on loopback that a test starts, stops and restarts: MLflow, S3 (rclone), SSH (asyncssh)."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.databases import copy_database

BIN = Path(sys.executable).parent
DEADLINE = 120.0


def free_port() -> int:
    """Find a free port on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def listening(command: Sequence[str | Path], port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that listens on the port inside the block; afterwards it is gone, with all processes that it started."""
    quiet = subprocess.DEVNULL
    own = {**os.environ, **environment}
    process = subprocess.Popen([*command], stdout=quiet, stderr=quiet, env=own, start_new_session=True)
    try:
        end = time.monotonic() + DEADLINE
        while not answers(port):
            assert process.poll() is None, f"{command} ended"
            assert time.monotonic() < end, f"{command} does not listen"
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    """Tell whether a server listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class TrackingServer:
    """An `mlflow server` on a folder, which can be started and killed repeatedly."""

    folder: Path
    port: int

    @property
    def uri(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[str]:
        """Run the server inside the block, and kill it at the end."""
        if not (self.folder / "server.db").exists():
            copy_database(self.folder / "server.db")
        command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with listening(command, self.port, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"):
            yield self.uri


@contextmanager
def rclone(folder: Path, port: int, *options: str) -> Iterator[None]:
    """Run `rclone serve s3` on a folder, whose subfolders are its buckets."""
    command = [BIN / "rclone", "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret", *options]
    with listening([*command, folder], port):
        yield


@contextmanager
def sftp(folder: Path, port: int) -> Iterator[Path]:
    """Run an SSH server whose root is the folder; yields the private key that opens it."""
    import asyncssh

    folder.mkdir()
    key, host = folder.parent / "key", folder.parent / "host"
    for path in (key, host):
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(path))
    (folder.parent / "keys").write_bytes(asyncssh.read_private_key(str(key)).export_public_key())
    serve = f"""
import asyncio, asyncssh
async def main():
    await asyncssh.listen("127.0.0.1", {port}, server_host_keys=[{str(host)!r}], authorized_client_keys={str(folder.parent / "keys")!r},
        sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot={str(folder)!r}))
    await asyncio.Event().wait()
asyncio.run(main())
"""
    with listening([sys.executable, "-c", serve], port):
        yield key
