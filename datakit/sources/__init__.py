"""Where videos come from: one module a source, each with the same function.

    fetch(specs, order) -> batches of outcomes

A source gets what it can of ``specs`` and says of every clip either where its file is (status ok, ``data["path"]`` from
the set's folder, ``data["from_s"]``: the second of the video at which the file begins, ``None`` when the file is the
clip) or, by the name of an ``ItemError``, why not. Outcomes of one batch belong together in the journal. What the
journal knows already is not said again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..catalog import Dataset
from ..errors import Missing
from ..journal import Journal, Outcome
from .http import Patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says of fetching. ``names``: the sources in the order they are asked; empty: the usual."""

    names: tuple[str, ...] = ()
    mirror: str = ""
    keep_archives: bool = True
    retry_gone: bool = False
    cookies: Path | None = None
    proxy: str = ""
    sleep_s: float | None = None
    yes: bool = False
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one source works with. ``table`` is its [sources.NAME]; ``limit``: clips are enough for now."""

    name: str
    dataset: Dataset
    table: dict[str, Any]
    set_dir: Path
    raw: Path | None
    journal: Journal
    options: Options
    num_jobs: int
    limit: int | None
    notes: Path

    @property
    def folder(self) -> Path:
        return self.set_dir / "raw" / self.name

    @property
    def stage(self) -> str:
        return fetch_stage(self.name)


def fetch_stage(source: str) -> str:
    """The journal's stage of what a source said of each clip."""
    return f"fetch:{source}"


def archive_stage(source: str) -> str:
    """The journal's stage of the archives that a source has been through."""
    return f"archive:{source}"


def reasons(journal: Journal) -> dict[str, Outcome]:
    """Why each clip that no source has is not here: what the last source said that did not merely lack it."""
    found: dict[str, Outcome] = {}
    for name in filter(None, (journal.setting("sources") or "").split(",")):
        for id_, outcome in journal.outcomes(fetch_stage(name), but="ok").items():
            if id_ not in found or outcome.error != Missing.__name__:
                found[id_] = outcome
    return found
