"""Clips that a run has finished before it ends, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datakit.errors import DataError, UsageError

FILE_NAME = "partial.sqlite"  # of the first process; partial-1.sqlite, ... of the others
COMMIT_EVERY_S = 1.0

Scores = NDArray[np.float32]
Views = NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """A clip's row of scores, the scores of its views if they are kept, and how many views of those planned it took."""

    scores: Scores
    views: Views | None
    num_views: int
    num_planned: int


def run_key(facts: Mapping[str, Any]) -> str:
    """Names a run by everything that its numbers depend on: JSON-able facts, whatever their order."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Partial:
    """``folder/partial.sqlite``: scores by run and clip. Rows of other runs stay as they are.

    Each process of a run writes a file of its own (``rank``); ``absorb`` puts the others' into the first one's.

    A clip carries a ``stamp`` of its file; when the file is another one now, the clip counts as not scored.
    Raises ``DataError`` when another run holds the file, when it is damaged, and when the disk takes no more.
    """

    def __init__(self, folder: Path, run: str, rank: int = 0) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder}: {error.strerror}; type --out DIR, a folder that can be made") from None
        self.path = folder / (f"partial-{rank}.sqlite" if rank else FILE_NAME)
        self._run = run
        with self._writing():
            self._db = sqlite3.connect(self.path, timeout=1.0)
        try:
            # The lock is kept until the end, so two runs never write the results of one folder at a time.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS clips (run TEXT, id TEXT, stamp TEXT, scores BLOB, views BLOB,"
                " num_views INTEGER, num_planned INTEGER, PRIMARY KEY (run, id)) WITHOUT ROWID"
            )
            self._db.execute("DELETE FROM clips WHERE run = ''")  # takes the lock
            self._db.commit()
        except sqlite3.OperationalError as error:
            self._db.close()
            if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise self._full(error) from error
            raise DataError(f"{folder}: another run writes there ({error}); wait for it, or type --out DIR") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise DataError(f"{self.path} is damaged ({error}); delete it and run again") from error
        self._committed_s = time.monotonic()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._full(error) from error

    def _full(self, error: sqlite3.OperationalError) -> DataError:
        return DataError(
            f"{self.path} cannot be written ({error}); mend that and run the same command again, what is finished "
            "stays, or type --out DIR"
        )

    def absorb(self) -> None:
        """Take in what the other processes of this run, or of one that was stopped, have finished, and their files."""
        for other in sorted(self.path.parent.glob("partial-*.sqlite")):
            try:
                with closing(sqlite3.connect(other, timeout=1.0)) as db:
                    rows = db.execute("SELECT * FROM clips").fetchall()
            except sqlite3.DatabaseError as error:
                raise DataError(f"{other} is damaged or in use ({error}); delete it and run again") from error
            with self._writing():
                self._db.executemany("INSERT OR REPLACE INTO clips VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                self._db.commit()
            other.unlink()

    def load(self, stamps: Mapping[str, str], num_classes: int) -> dict[str, Scored]:
        """The clips in ``stamps`` (id -> stamp) that are there."""
        found = {}
        rows = self._db.execute(
            "SELECT id, stamp, scores, views, num_views, num_planned FROM clips WHERE run = ?", (self._run,)
        )
        for clip_id, stamp, scores, views, num_views, num_planned in rows:
            if stamps.get(clip_id) == stamp:
                found[clip_id] = Scored(
                    scores=np.frombuffer(scores, np.float32),
                    views=None if views is None else np.frombuffer(views, np.float16).reshape(-1, num_classes),
                    num_views=num_views,
                    num_planned=num_planned,
                )
        return found

    def add(self, clip_id: str, stamp: str, scored: Scored) -> None:
        views = None if scored.views is None else scored.views.tobytes()
        row = (self._run, clip_id, stamp, scored.scores.tobytes(), views, scored.num_views, scored.num_planned)
        with self._writing():
            self._db.execute("INSERT OR REPLACE INTO clips VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            if time.monotonic() - self._committed_s >= COMMIT_EVERY_S:
                self._db.commit()
                self._committed_s = time.monotonic()

    def finish(self) -> None:
        """The results are in place: forget this run, and the file when no other run is in it."""
        self._db.execute("DELETE FROM clips WHERE run = ?", (self._run,))
        self._db.commit()
        if self._db.execute("SELECT 1 FROM clips LIMIT 1").fetchone() is None:
            self.path.unlink()

    def close(self) -> None:
        try:
            with self._writing():
                self._db.commit()
        finally:
            self._db.close()
