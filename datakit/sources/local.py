"""A folder of videos under any of the published names, in class folders or flat."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..annotations import VIDEO_SUFFIXES, ClipSpec, files_below, stem


def index(raw: Path) -> dict[str, list[Path]]:
    """Every video below ``raw`` by its name without suffixes."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files_below(raw):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            found[stem(path.name)].append(path)
    return found


def find(specs: Iterable[ClipSpec], raw: Path, clip_names: tuple[str, ...]) -> list[ClipSpec]:
    """``specs`` with their files below ``raw``; ``source`` stays ``None`` for what is not there.

    ``clip_names`` are the published ways to name a clip, best first ("{video}_{start:06d}_{end:06d}", "{video}"). One
    that fits several clips of the list (one video, two moments) says nothing and is not taken. Of several files for one
    clip an empty one counts last.
    """
    specs = list(specs)
    videos = index(raw)
    candidates = [
        [name.format(video=spec.video, start=int(spec.start_s or 0), end=int(spec.end_s or 0)) for name in clip_names]
        for spec in specs
    ]
    fits = Counter(name for names in candidates for name in set(names))
    return [
        replace(spec, source=next((_best(videos[name]) for name in names if name in videos and fits[name] == 1), None))
        for spec, names in zip(specs, candidates, strict=True)
    ]


def _best(paths: list[Path]) -> Path:
    return min(paths, key=lambda path: (path.stat().st_size == 0, str(path)))
