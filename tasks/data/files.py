"""Files of a source on this machine, and the text in them: refuses links that lead outside, decompression bombs and other encodings.

Nothing is guessed: the format that a file name promises is checked against the first bytes, and the error names the position of whatever is
not UTF-8.
"""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mgaa.errors import InputError

PACKED: dict[str, Callable[[io.BytesIO], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
UNREADABLE = (".zip", ".zst", ".tar", ".tgz", ".7z", ".pdf", ".docx", ".html")
FLOOR, EXPANSION = 256 * 2**20, 100
"""Bytes up to which any packed file may expand, and the factor of its own size beyond that; text is packed 3 to 20 times."""

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"%PDF": "PDF",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""First bytes of formats that are not UTF-8 text."""


def locate_source(source: str | Path) -> Path | None:
    """Path of a source; None if nothing exists there.

    Raises:
        InputError: it cannot be accessed, or is neither a file nor a folder.
    """
    try:
        path = Path(source).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{str(source)[:80]!r} cannot be read ({reason}), expected a file or a folder: check the path."
        ) from error
    if not path.is_file() and not path.is_dir():
        raise InputError(
            f"{source} is a pipe or a device, expected a file or a folder: write what comes out of it to a file."
        )
    return path


def files_below(folder: Path) -> list[Path]:
    """Files in a folder at any depth, in the order of their names; hidden ones are left out.

    Raises:
        InputError: a folder cannot be read, a name is not UTF-8, or a link leads out of the folder or nowhere.
    """
    found = []
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (name for name in [*folders, *files] if not name.startswith(".")):
            _check_entry(Path(place) / name, folder)
        found += [Path(place) / name for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _check_entry(path: Path, folder: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{folder} holds the name {path.name!r}, which is not UTF-8: rename it.") from None
    if path.is_symlink() and not path.resolve().is_relative_to(_bound(folder)):
        raise InputError(
            f"{path} is a link out of {folder}, expected what is in the folder: put a copy there, or name its place."
        )
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link to nothing, expected a file: remove it, or correct it.")


def _bound(folder: Path) -> Path:
    """Folder that links may not leave: the folder itself or, in the Hub's cache, where files are links into `blobs`, its repository."""
    whole = folder.resolve()
    return next((each.parents[1] for each in (whole, *whole.parents) if each.parent.name == "snapshots"), whole)


def _unreadable(error: OSError) -> None:
    raise InputError(
        f"{error.filename} cannot be read ({error.strerror}), expected a readable folder: check its permissions."
    )


def read_content(path: Path) -> bytes:
    """Read the bytes of a file, still packed.

    Raises:
        InputError: the file cannot be read, or its ending is that of a format without text.
    """
    ending = Path(inner_name(path)).suffix
    if ending in UNREADABLE:
        raise InputError(f"{path} ends in {ending}; expected text, rows or columns: unpack or convert it.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), expected a readable file: check its permissions."
        ) from error


def inner_name(path: Path) -> str:
    """Name of a file in lower case, without the ending of its compression."""
    name = path.name.lower()
    return next((name.removesuffix(ending) for ending in PACKED if name.endswith(ending)), name)


def unpack(path: Path, raw: bytes) -> bytes:
    """Unpack the content of a file if its ending says that it is compressed.

    Raises:
        InputError: the file is damaged, or expands to more than both `FLOOR` bytes and `EXPANSION` times its size.
    """
    ending = path.suffix.lower()
    if ending not in PACKED:
        return raw
    limit = max(FLOOR, EXPANSION * len(raw))
    try:
        with PACKED[ending](io.BytesIO(raw)) as file:
            inner: bytes = file.read(limit + 1)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{path} cannot be unpacked ({error}), expected {ending[1:]}: fetch it again, or rename it."
        ) from error
    if len(inner) > limit:
        raise InputError(
            f"{path} has {len(raw)} bytes and unpacks to more than {limit}, expected at most {EXPANSION} times its size: if that is "
            "meant, unpack it and give what comes out."
        )
    return inner


def decode_text(path: Path, inner: bytes) -> str:
    """Decode bytes as text.

    Raises:
        InputError: they are not UTF-8, or their first bytes are those of another format.
    """
    try:
        text = inner.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        what = f"byte {inner[error.start]:#04x} at offset {error.start} ({error.reason})"
        raise InputError(f"{path} is not UTF-8: {what}: {_encoding_remedy(inner)}.") from error
    if (place := text.find("\0")) >= 0:
        raise InputError(f"{path} is no text: character {place} is a zero byte: {_encoding_remedy(inner)}.")
    return text


def _encoding_remedy(inner: bytes) -> str:
    """Remedy for bytes that are not UTF-8, by the first of them."""
    what = next((name for magic, name in _MAGIC.items() if inner.startswith(magic)), None)
    if what is None:
        return "convert it, for example with `iconv -f latin1 -t utf-8`, or `-f utf-16`, by how it was written"
    if what == "UTF-16":
        return "it is UTF-16; convert it with `iconv -f utf-16 -t utf-8`"
    return f"it is {what}; unpack or convert it, or give it the ending that says so"
