"""Every state in which a kill can leave a SQLite file: its content after each transaction of the program that makes it."""

import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

HEADER, FRAME = 32, 24
"""Bytes before the first page of a write-ahead log, and before each page in it."""


class Commits:
    """A file that `make` has made, transaction by transaction; `fill` may put content into it before."""

    def __init__(self, folder: Path, make: Callable[[Path], object]) -> None:
        self.base, path = folder / "base.db", folder / "made.db"
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode = WAL")
        shutil.copy(path, self.base)
        with closing(
            sqlite3.connect(path, isolation_level=None)
        ) as reader:  # an open reader keeps the log from being truncated
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_master").fetchall()
            make(path)
            self.log = path.with_name("made.db-wal").read_bytes()
        size, salt = struct.unpack(">I", self.log[8:12])[0], self.log[16:24]
        self.ends = [HEADER]
        for start in range(HEADER, len(self.log), FRAME + size):
            if self.log[start + 8 : start + 16] == salt and struct.unpack(">I", self.log[start + 4 : start + 8])[0]:
                self.ends.append(start + FRAME + size)

    def __len__(self) -> int:
        return len(self.ends)

    def leave(self, number: int, path: Path) -> Path:
        """Write to `path` the file as it was after so many transactions."""
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
        shutil.copy(self.base, path)
        path.with_name(f"{path.name}-wal").write_bytes(self.log[: self.ends[number]])
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode = DELETE")  # into one file
        return path


def content(path: Path) -> list[str]:
    """Content of a file, as SQL."""
    with closing(sqlite3.connect(path)) as database:
        return sorted(database.iterdump())
