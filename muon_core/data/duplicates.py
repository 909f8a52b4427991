"""Which documents are equal to an earlier one, kept on the disk: their number has no limit, memory has.

A digest is remembered with the number of the first document that had it. Who was killed and does some documents again
asks for their digests again, and each finds itself, not a double. Imports no torch.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

_CACHE_KIB = 24 << 10


class Duplicates:
    """The digests of the documents so far, in a file."""

    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(file, isolation_level=None)
        for setting in (f"cache_size = -{_CACHE_KIB}", "journal_mode = DELETE", "locking_mode = EXCLUSIVE"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def is_duplicate(self, digest: bytes, number: int) -> bool:
        """Whether a document before the one of this `number` had its `digest`; documents come in order."""
        row = self._database.execute("SELECT number FROM seen WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            self._database.execute("INSERT INTO seen VALUES (?, ?)", (digest, number))
            return False
        return bool(row[0] < number)

    def commit(self) -> None:
        """Make what is known outlive this process."""
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Without a commit."""
        self._database.close()
