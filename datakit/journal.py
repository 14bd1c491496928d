"""Every item's outcome, in one SQLite file that one process writes, on a disk of its own machine.

``clip``   what the list asks for, one row a clip.
``item``   what became of it, one row a clip and stage; ``key`` names what it was made from, ``data`` is JSON.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import disk, files
from .annotations import ClipSpec
from .errors import BadManifest, DataError, UsageError

SCHEMA_VERSION = 2
_GENERATION = "generation"
_log = logging.getLogger(__name__)
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
            except OSError as error:  # a network disk without locks
                raise UsageError(
                    f"{path.parent} is on a disk that cannot lock files ({error.strerror}), so nothing keeps two "
                    f"commands apart; type --data-root with a folder on another disk"
                ) from None
            own = _own_path(path)
            if own != path:
                _seed(own, path)
            with _connect(own) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.executescript(_TABLES)
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                if own == path:
                    yield cls(connection)
                    return
                _publish(own, path)  # from now on the folder says what it is
                journal = cls(connection)
                journal.set_setting(_GENERATION, str(_generation(own) + 1))
                try:
                    yield journal
                finally:
                    _publish(own, path)

    @classmethod
    @contextmanager
    def read(cls, path: Path) -> Iterator[Journal]:
        """The journal at ``path`` for looking only, also while another process writes."""
        if not path.is_file():
            raise UsageError(
                f"nothing was prepared here: {path} is not there; type: python -m datakit prepare NAME --raw DIR"
            )
        own = _own_path(path)
        if own != path and _generation(own) <= _generation(path, frozen=True):
            connecting = _connect(path, frozen=True)
        else:
            connecting = _connect(own)
        with connecting as connection:
            yield cls(connection)

    def replace_clips(self, splits: Iterable[str], clips: Iterable[ClipSpec]) -> None:
        """Make ``clips`` the whole list of ``splits``; what became of a clip that stays is kept.

        A clip may come from another split, but only with its file: raises ``BadManifest`` for two clips of one name.
        """
        clips = list(clips)
        replaced = set(splits)
        others = {clip.id: clip for clip in self.clips(but=replaced)}
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

    def clips(self, but: Collection[str] = ()) -> list[ClipSpec]:
        """The list, by id, without the splits ``but``."""
        marks = ",".join("?" * len(but))
        rows = self._connection.execute(
            f"SELECT {_CLIP_COLUMNS} FROM clip WHERE split NOT IN ({marks}) ORDER BY id", tuple(but)
        )
        with _no_garbage():
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
                    event_s=None if times[0] is None else (times[0], times[1]),
                    cut_s=None if times[2] is None else (times[2], times[3]),
                )
                for id_, video, split, label, start, end, source, event, *times in rows
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

    def outcomes(self, stage: str, *, but: str = "") -> dict[str, Outcome]:
        """What became of every item in ``stage``, without those of the status ``but``. Of 650 000 clips it takes
        seconds and a gigabyte (docs/scale.md)."""
        cursor = self._connection.execute(
            "SELECT id, stage, key, status, error, message, seconds, data FROM item WHERE stage = ? AND status != ?",
            (stage, but),
        )
        found = {}
        with _no_garbage():
            while rows := cursor.fetchmany(1000):
                # one document, so that equal keys are one string
                tables = json.loads(f"[{','.join(row[7] for row in rows)}]")
                for row, data in zip(rows, tables, strict=True):
                    found[row[0]] = Outcome(
                        id=row[0], stage=row[1], key=row[2], status=row[3], error=row[4], message=row[5],
                        seconds=row[6], data=data,
                    )  # fmt: skip
        return found

    def keys(self, stage: str) -> dict[str, str]:
        """What every item in ``stage`` was made from, without the rest of what is known."""
        return dict(self._connection.execute("SELECT id, key FROM item WHERE stage = ?", (stage,)))

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
def _no_garbage() -> Iterator[None]:
    """While millions of objects are made that all stay, looking through them for garbage takes half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _own_path(path: Path) -> Path:
    """Where the journal that belongs at ``path`` is worked on: there, or, when that is on a network disk, in a folder
    of this user on a disk of this machine. Raises ``UsageError`` when there is no such disk."""
    if not disk.is_network(disk.file_system(path)):
        return path
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    for folder in (
        state / "actionkit",
        Path(f"/var/tmp/actionkit-{os.getuid()}"),
        Path(tempfile.gettempdir()) / "actionkit",
    ):
        if not disk.is_network(disk.file_system(folder)) and os.access(_nearest(folder), os.W_OK):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}-{path.name}"
    raise UsageError(
        f"{path} is on a network disk, where SQLite is not safe, and so are the home and temporary folders of this "
        f"machine; set XDG_STATE_HOME to a folder on its own disk"
    )


def _seed(own: Path, path: Path) -> None:
    """Have in ``own`` the journal that belongs at ``path``.

    A run that was killed leaves its own copy; the next one on this machine goes on with it, unless another machine has
    worked since: each opening counts up, and the higher count wins.
    """
    _log.info(
        "%s is on %s, where SQLite is not safe: until this command ends, the journal is kept in %s",
        path.parent, disk.file_system(path), own,
    )  # fmt: skip
    if not path.exists() or _generation(path, frozen=True) >= _generation(own):
        for left in (own, own.with_name(f"{own.name}-wal"), own.with_name(f"{own.name}-shm")):
            left.unlink(missing_ok=True)
        if path.exists():
            shutil.copyfile(path, own)


def _publish(own: Path, path: Path) -> None:
    with files.replacing(path) as part, _connect(own) as source, _connect(part) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")


def _generation(path: Path, *, frozen: bool = False) -> int:
    """How often the journal was opened for writing on a machine's own disk; -1 when it is not there."""
    if not path.is_file():
        return -1
    with _connect(path, frozen=frozen) as connection:
        has_settings = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'setting'").fetchone()
        if not has_settings:
            return -1
        row = connection.execute("SELECT value FROM setting WHERE name = ?", (_GENERATION,)).fetchone()
    return int(row[0]) if row else 0


def _nearest(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


@contextmanager
def _connect(path: Path, *, frozen: bool = False) -> Iterator[sqlite3.Connection]:
    """``frozen``: nobody writes to this file, so no locks are needed (a network disk may have none)."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?immutable=1" if frozen else str(path), timeout=60, uri=frozen
    )
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
