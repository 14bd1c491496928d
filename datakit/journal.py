"""Every item's outcome, in one SQLite file that one process writes.

``clip``   what the list asks for, one row a clip.
``item``   what became of it, one row a clip and stage; ``key`` names what it was made from, ``data`` is JSON.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .annotations import ClipSpec
from .errors import BadManifest, DataError, UsageError

SCHEMA_VERSION = 2
_CLIP_COLUMNS = (
    "id, video, split, label, start_s, end_s, source, event, event_start_s, event_end_s, cut_start_s, cut_end_s"
)
_TABLES = """
CREATE TABLE IF NOT EXISTS clip (
    id TEXT PRIMARY KEY, video TEXT NOT NULL, split TEXT NOT NULL, label TEXT,
    start_s REAL, end_s REAL, source TEXT,
    event TEXT NOT NULL DEFAULT '', event_start_s REAL, event_end_s REAL, cut_start_s REAL, cut_end_s REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS item (
    id TEXT NOT NULL, stage TEXT NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL, error TEXT NOT NULL,
    message TEXT NOT NULL, tries INTEGER NOT NULL, seconds REAL NOT NULL, finished TEXT NOT NULL, data TEXT NOT NULL,
    PRIMARY KEY (id, stage)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one item in one stage. ``status``: ok, damaged, failed."""

    id: str
    stage: str
    key: str = ""
    status: str
    error: str = ""
    message: str = ""
    seconds: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)


class Journal:
    """Open with ``Journal.open``; only one process may hold it for writing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Journal]:
        """The journal at ``path``, made when there is none, locked against a second writer.

        Raises ``UsageError`` when another process holds it, ``BadManifest`` when it is no journal of this version.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_suffix(".lock").open("w")
        except OSError as error:
            raise UsageError(
                f"{path.parent} cannot be written to ({error.strerror}); type --data-root with a folder that can be"
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"another command is working on {path.parent}; wait for it, or stop it, and type again"
                ) from None
            with _connect(path) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.executescript(_TABLES)
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                yield cls(connection)

    @classmethod
    @contextmanager
    def read(cls, path: Path) -> Iterator[Journal]:
        """The journal at ``path`` for looking only, also while another process writes."""
        if not path.is_file():
            raise UsageError(
                f"nothing was prepared here: {path} is not there; type: python -m datakit prepare NAME --raw DIR"
            )
        with _connect(path) as connection:
            yield cls(connection)

    def replace_clips(self, splits: Iterable[str], clips: Iterable[ClipSpec]) -> None:
        """Make ``clips`` the whole list of ``splits``; what became of a clip that stays is kept.

        A clip may come from another split, but only with its file: raises ``BadManifest`` for two clips of one name.
        """
        clips = list(clips)
        replaced = set(splits)
        others = {clip.id: clip for clip in self.clips() if clip.split not in replaced}
        for spec in clips:
            other = others.get(spec.id)
            if other is not None and other.source != spec.source:
                raise BadManifest(
                    f"{spec.source} has the name of a clip in split {other.split!r} ({other.source}); "
                    f"put both below one folder and prepare that, or rename one"
                )
        rows = [
            (
                spec.id,
                spec.video,
                spec.split,
                spec.label,
                spec.start_s,
                spec.end_s,
                str(spec.source) if spec.source else None,
                spec.event,
                *(spec.event_s or (None, None)),
                *(spec.cut_s or (None, None)),
            )
            for spec in clips
        ]
        with self._connection:
            self._connection.executemany("DELETE FROM clip WHERE split = ?", [(split,) for split in replaced])
            self._connection.executemany(
                f"INSERT OR REPLACE INTO clip ({_CLIP_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", rows
            )

    def clips(self) -> list[ClipSpec]:
        rows = self._connection.execute(f"SELECT {_CLIP_COLUMNS} FROM clip ORDER BY id")
        return [
            ClipSpec(
                id=id_,
                video=video,
                split=split,
                label=label,
                start_s=start,
                end_s=end,
                source=source and Path(source),
                event=event,
                event_s=None if event_start is None else (event_start, event_end),
                cut_s=None if cut_start is None else (cut_start, cut_end),
            )
            for id_, video, split, label, start, end, source, event, event_start, event_end, cut_start, cut_end in rows
        ]

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Record outcomes, all of them or none."""
        with self._connection:
            self._connection.executemany(
                """INSERT INTO item VALUES (?,?,?,?,?,?,1,?,datetime('now'),?)
                   ON CONFLICT (id, stage) DO UPDATE SET key=excluded.key, status=excluded.status, error=excluded.error,
                   message=excluded.message, tries=tries+1, seconds=excluded.seconds, finished=excluded.finished,
                   data=excluded.data""",
                [
                    (out.id, out.stage, out.key, out.status, out.error, out.message, out.seconds, json.dumps(out.data))
                    for out in outcomes
                ],
            )

    def outcomes(self, stage: str) -> dict[str, Outcome]:
        rows = self._connection.execute(
            "SELECT id, stage, key, status, error, message, seconds, data FROM item WHERE stage = ?", (stage,)
        )
        return {
            row[0]: Outcome(
                id=row[0], stage=row[1], key=row[2], status=row[3], error=row[4], message=row[5], seconds=row[6],
                data=json.loads(row[7]),
            )
            for row in rows
        }  # fmt: skip

    def tries(self, stage: str) -> dict[str, tuple[int, str]]:
        """How often each item was tried, and when last (UTC)."""
        rows = self._connection.execute("SELECT id, tries, finished FROM item WHERE stage = ?", (stage,))
        return {row[0]: (row[1], row[2]) for row in rows}

    def setting(self, name: str) -> str | None:
        row = self._connection.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return row and str(row[0])

    def set_setting(self, name: str, value: str) -> None:
        with self._connection:
            self._connection.execute("INSERT OR REPLACE INTO setting VALUES (?,?)", (name, value))

    def add_to_setting(self, name: str, values: Iterable[str]) -> None:
        """A setting that is a set of names, one a line."""
        self.set_setting(name, "\n".join(sorted({*(self.setting(name) or "").split(), *values})))


@contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=60)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 1:  # before clips could be parts of events and of files
            connection.execute("ALTER TABLE clip ADD COLUMN event TEXT NOT NULL DEFAULT ''")
            for column in ("event_start_s", "event_end_s", "cut_start_s", "cut_end_s"):
                connection.execute(f"ALTER TABLE clip ADD COLUMN {column} REAL")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.commit()
        elif version not in (0, SCHEMA_VERSION):
            raise BadManifest(f"{path} was written by another version (schema {version}); move it away to start afresh")
        yield connection
    except sqlite3.OperationalError as error:  # disk full, no permission, a disk that cannot lock
        raise DataError(
            f"{path}: {error} (is the disk full?); nothing that is finished is lost: type the command again after that"
        ) from error
    except sqlite3.DatabaseError as error:
        raise BadManifest(f"{path}: {error}; move it away: finished videos say themselves what they are") from error
    finally:
        connection.close()
