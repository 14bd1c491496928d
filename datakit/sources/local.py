"""A folder of videos under any of the published names, in class folders or flat: clips, events or whole videos.

Also folders of pictures, where that is what a data set consists of.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..annotations import JOURNAL, VIDEO_SUFFIXES, ClipSpec, files_below, stem
from ..catalog import Dataset
from ..errors import Missing, UsageError
from ..journal import Outcome
from . import Order

# A clip may be listed to end a little after its event: then the whole video has more of it.
LATE_S = 0.001
_PICTURE = re.compile(r"(?!\.|(flow_)?[xy]_).*[0-9]\.jpe?g", re.IGNORECASE)  # flow may lie in a folder of that name too


def fetch(specs: Sequence[ClipSpec], order: Order) -> Iterator[list[Outcome]]:
    """Say of every clip where its file is below the folder that the user named."""
    if order.raw is None:
        raise UsageError(f"which folder holds the videos? type --raw DIR beside --source {order.name}")
    outcomes = []
    for spec in find(specs, order.raw, order.dataset):
        if spec.source is None:
            what = f"no file of that name below {order.raw}"
            outcome = Outcome(id=spec.id, stage=order.stage, status="failed", error=Missing.__name__, message=what)
        else:
            from_s = (spec.start_s or 0.0) - spec.cut_s[0] if spec.cut_s else None
            data = {"path": str(spec.source), "from_s": from_s}
            outcome = Outcome(id=spec.id, stage=order.stage, status="ok", data=data)
        outcomes.append(outcome)
    yield outcomes


def index(raw: Path, *, pictures: bool = False, skip: frozenset[Path] = frozenset()) -> dict[str, list[Path]]:
    """Every video below ``raw`` by its name without suffixes; with ``pictures`` every folder of numbered JPEG files
    instead, by its name, whether its first file is there or not."""
    found: dict[str, list[Path]] = defaultdict(list)
    if pictures:
        for path in _folders_of_pictures(raw):
            found[path.name].append(path)
        return found
    for path in files_below(raw):
        if path.suffix.lower() in VIDEO_SUFFIXES and not (skip and skip & set(path.parents)):
            found[stem(path.name)].append(path)
    return found


def find(specs: Iterable[ClipSpec], raw: Path, dataset: Dataset, skip: frozenset[Path] = frozenset()) -> list[ClipSpec]:
    """``specs`` with their files below ``raw``; ``source`` stays ``None`` for what is not there.

    A file may hold the clip, its event, or the whole video (the names that the data set's manifest lists, best first);
    ``cut_s`` says which part of it is meant. A name of a clip that fits several clips of the list (one video, two
    moments) says nothing and is not taken. Of several files for one clip an empty one counts last. What lies below the
    folders ``skip`` does not count.
    """
    specs = list(specs)
    videos = index(raw, pictures=bool(dataset.layout.frame_names), skip=skip)
    fits = Counter(name for spec in specs for name in set(clip_file_names(spec, dataset)))
    found = []
    for spec in specs:
        name = next((name for name in clip_file_names(spec, dataset) if name in videos and fits[name] == 1), None)
        if name is not None:
            found.append(replace(spec, source=_best(videos[name])))
            continue
        longer = next(((name, from_s) for name, from_s in _longer(spec, dataset) if name in videos), None)
        if longer is not None and spec.start_s is not None and spec.end_s is not None:
            name, from_s = longer
            cut_s = (round(spec.start_s - from_s, 6), round(spec.end_s - from_s, 6))
            found.append(replace(spec, source=_best(videos[name]), cut_s=cut_s))
            continue
        found.append(spec)
    return found


def clip_file_names(spec: ClipSpec, dataset: Dataset) -> list[str]:
    """What a file that holds just this clip may be called, without suffix, best first."""
    return [_named(name, spec) for name in dataset.clip_names]


def _longer(spec: ClipSpec, dataset: Dataset) -> Iterator[tuple[str, float]]:
    """Names of files that hold more than the clip, with the second of the video at which they begin, best first."""
    events = [(_named(name, spec), spec.event_s[0]) for name in dataset.event_names if spec.event_s]
    whole = [(_named(name, spec), 0.0) for name in dataset.video_names]
    late = spec.event_s is not None and spec.end_s is not None and spec.end_s > spec.event_s[1] + LATE_S
    yield from [*whole, *events] if late else [*events, *whole]


def _named(name: str, spec: ClipSpec) -> str:
    start, end = int(spec.start_s or 0), int(spec.end_s or 0)
    return name.format(id=spec.id, video=spec.video, event=spec.event, start=start, end=end)


def _folders_of_pictures(raw: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(raw, followlinks=True):
        subfolders[:] = [] if JOURNAL in names else sorted(one for one in subfolders if not one.startswith("."))
        if any(map(_PICTURE.fullmatch, names)):
            yield Path(folder)


def _best(paths: list[Path]) -> Path:
    return min(paths, key=lambda path: (path.stat().st_size == 0, str(path)))
