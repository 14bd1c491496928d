"""What two lists have in common: clips, source videos, files. A network that trained on it is not tested by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from . import catalog, fingerprint, official
from .annotations import JOURNAL
from .copies import ids_in
from .errors import UsageError
from .journal import Journal
from .layout import SOURCE_STAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """One split of one set. ``videos``: clip id -> the video it is from. ``files``: hash of a source -> a clip of it,
    of the sources that were hashed."""

    set_name: str
    split: str
    videos: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.set_name} {self.split}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What ``first`` and ``second`` have in common, sorted. ``files``: (clip of the first, clip of the second) whose
    sources are the same bytes under different names. ``videos`` is ``None`` where the names say nothing."""

    first: Members
    second: Members
    clips: tuple[str, ...]
    videos: tuple[str, ...] | None
    files: tuple[tuple[str, str], ...]

    def num_clips_of_shared_videos(self, members: Members) -> int:
        names = set(self.videos or ())
        return sum(video in names for video in members.videos.values())


def shared(groups: Sequence[Members]) -> Iterator[Shared]:
    """Every pair of ``groups`` that has something in common, or that cannot be compared by name."""
    for first, second in combinations(groups, 2):
        files = tuple(
            sorted(
                (first.files[one], second.files[one])
                for one in first.files.keys() & second.files.keys()
                if first.files[one] != second.files[one]
            )
        )
        if first.set_name != second.set_name and (_are_numbers(first) or _are_numbers(second)):
            yield Shared(first=first, second=second, clips=(), videos=None, files=files)
            continue
        clips = tuple(sorted(first.videos.keys() & second.videos.keys()))
        videos = tuple(sorted(set(first.videos.values()) & set(second.videos.values())))
        if clips or videos or files:
            yield Shared(first=first, second=second, clips=clips, videos=videos, files=files)


def _are_numbers(members: Members) -> bool:
    """Clips that are only numbered: the same number in another set is another video."""
    return all(clip_id.isdigit() for clip_id in members.videos)


def members_of(name: str, data_root: Path, annotations: Path | None) -> list[Members]:
    """The splits of a set: as it was prepared; else its official lists, where they lie; else a list of that path.

    Raises ``UsageError`` saying where they were looked for.
    """
    set_dir = data_root / name
    if (set_dir / JOURNAL).is_file() and (prepared := _prepared(name, set_dir)):
        return prepared
    dataset = catalog.dataset(name) if name == Path(name).name else None
    if dataset is None:
        if not Path(name).is_file():
            raise UsageError(f"{name}: nothing was prepared in {set_dir}, no manifest describes it, and it is no list")
        ids = ids_in(Path(name))
        videos = {one: fingerprint.video_of(one) for one in ids}
        return [Members(set_name=name, split="list", videos=videos)]
    folders = [set_dir / "raw" / "annotations", set_dir / "raw"]
    if annotations is not None:
        folders = [annotations / name, annotations, *folders]
    found = []
    for split in dataset.splits:
        path = next((folder / file for folder in folders for file in split.files if (folder / file).is_file()), None)
        if path is not None:
            specs = official.read(path, dataset, split)
            found.append(Members(set_name=name, split=split.name, videos={spec.id: spec.video for spec in specs}))
    if not found:
        raise UsageError(
            f"nothing was prepared in {set_dir}, and no official list of {dataset.title} lies in "
            f"{', '.join(map(str, folders))}; type --annotations DIR with a folder that holds them (or DIR/{name}/)"
        )
    return found


def _prepared(name: str, set_dir: Path) -> list[Members]:
    with Journal.read(set_dir / JOURNAL) as journal:
        specs = journal.clips()
        sources = journal.outcomes(SOURCE_STAGE)
    groups: dict[str, Members] = {}
    for spec in specs:
        members = groups.setdefault(spec.split, Members(set_name=name, split=spec.split, videos={}))
        members.videos[spec.id] = spec.video
        if spec.id in sources and sources[spec.id].key and spec.cut_s is None:
            members.files[sources[spec.id].key] = spec.id
    return [groups[split] for split in sorted(groups)]
