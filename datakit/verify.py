"""Is every file still what the manifest says? Decodes them all and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import encode, runner
from .errors import HashMismatch, Missing, Unreadable
from .journal import Outcome
from .manifest import Clip

STAGE = "verify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    id: str
    path: Path
    frames: int | None
    sha256: str | None
    content_sha256: str | None


def verify(clips: list[Clip], num_jobs: int, notes: Path) -> Iterator[Outcome]:
    """One outcome for every clip that has a file, as they are decoded."""
    expected = [
        Expected(id=c.id, path=c.path, frames=c.frames, sha256=c.sha256, content_sha256=c.content_sha256)
        for c in clips
        if c.path is not None
    ]
    return runner.run(verify_one, expected, name=lambda one: one.id, stage=STAGE, num_jobs=num_jobs, notes=notes)


def verify_one(expected: Expected) -> Outcome:
    """ok, or failed with Missing, Unreadable or HashMismatch (bytes differ; the message says if the pictures do)."""

    def failed(error: type[Exception], message: str) -> Outcome:
        return Outcome(id=expected.id, stage=STAGE, status="failed", error=error.__name__, message=message)

    if not expected.path.exists():
        return failed(Missing, f"{expected.path} is not there")
    try:
        checked, broken, _ = encode.examine(expected.path)
    except Unreadable as error:
        return failed(Unreadable, f"{expected.path}: {error}")
    if broken and checked.sha256 != expected.sha256:
        return failed(Unreadable, f"{expected.path}: {broken}")
    if checked.frames != expected.frames:
        return failed(HashMismatch, f"{expected.path}: {checked.frames} frames, the manifest says {expected.frames}")
    if checked.sha256 != expected.sha256:
        same = checked.content_sha256 == expected.content_sha256
        return failed(HashMismatch, f"{expected.path}: other bytes, {'the same' if same else 'other'} pictures")
    data: dict[str, Any] = {"frames": checked.frames}
    return Outcome(id=expected.id, stage=STAGE, status="ok", data=data)
