"""Clips that are parts of events and videos: what is missing, said of the largest thing that is missing whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .annotations import ClipSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A video, or an event of a video of which other events are there, that has no file for any of its clips."""

    kind: str
    name: str
    events: int
    elements: int
    ids: tuple[str, ...]

    def __str__(self) -> str:
        events = f"{_counted(self.events, 'event')}, " if self.kind == "video" else ""
        return f"{self.kind} {self.name} is missing: {events}{_counted(self.elements, 'element')}"

    def to_dict(self) -> dict[str, Any]:
        table = asdict(self)
        del table["ids"]
        return table


def gaps(specs: Iterable[ClipSpec], absent: set[str]) -> list[Gap]:
    """Videos and events that are missing whole, videos first, sorted by name. ``absent``: ids of clips without a file.

    Empty for a data set without events: there a clip is all there is of its video.
    """
    videos: dict[str, list[ClipSpec]] = defaultdict(list)
    for spec in specs:
        if spec.event:
            videos[spec.video].append(spec)
    whole, parts = [], []
    for name, clips in sorted(videos.items()):
        if all(clip.id in absent for clip in clips):
            whole.append(_gap("video", name, clips))
            continue
        parts += [_gap("event", event, some) for event, some in _by_event(clips) if all(s.id in absent for s in some)]
    return [*whole, *parts]


def levels(specs: Iterable[ClipSpec], absent: set[str]) -> dict[str, dict[str, int]]:
    """How many videos and events are whole, there in part, or missing; empty for a data set without events."""
    counts = {kind: {"whole": 0, "in part": 0, "missing": 0} for kind in ("videos", "events")}
    for kind, groups in _groups(specs).items():
        for ids in groups.values():
            lacking = len(ids & absent)
            counts[kind]["whole" if not lacking else "missing" if lacking == len(ids) else "in part"] += 1
    return counts if any(counts["events"].values()) else {}


def _groups(specs: Iterable[ClipSpec]) -> Mapping[str, Mapping[str, set[str]]]:
    groups: dict[str, dict[str, set[str]]] = {"videos": defaultdict(set), "events": defaultdict(set)}
    for spec in specs:
        if spec.event:
            groups["videos"][spec.video].add(spec.id)
            groups["events"][spec.event].add(spec.id)
    return groups


def _by_event(clips: Iterable[ClipSpec]) -> list[tuple[str, list[ClipSpec]]]:
    events: dict[str, list[ClipSpec]] = defaultdict(list)
    for clip in clips:
        events[clip.event].append(clip)
    return sorted(events.items())


def _gap(kind: str, name: str, clips: list[ClipSpec]) -> Gap:
    return Gap(
        kind=kind,
        name=name,
        events=len({clip.event for clip in clips}),
        elements=len(clips),
        ids=tuple(clip.id for clip in clips),
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
