"""One archive that was published in parts, ``name-00``, ``name-01``, ...: read as one stream, never joined on disk.

    [sources.archive]
    parts = "20bn-jester-v1-"       what the names of the parts have before their number

Only the first part looks like an archive, and a missing or repeated one shows late and as noise; so the sequence is
checked before anything is unpacked. A folder of pictures gets its name when all of it is there. A run that was stopped
reads the stream again and passes over what it finds done.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from .. import console
from ..annotations import VIDEO_SUFFIXES, ClipSpec, stem
from ..errors import BadArchive, Missing, UsageError
from ..journal import Outcome
from . import Order, archive_stage, local, unpack

IMAGE_SUFFIXES = {".jpg", ".jpeg"}
BATCH = 200  # clips that go into the journal together
_HEAD_BYTES = 1 << 16


def fetch(specs: Sequence[ClipSpec], order: Order) -> Iterator[list[Outcome]]:
    """Unpack the parts that lie below the folder that the user named, or below ``raw``.

    Raises ``UsageError`` when there is no part at all, ``BadArchive`` for a broken sequence or stream.
    """
    known = order.journal.outcomes(order.stage)
    names = {name for spec in specs for name in local.clip_file_names(spec, order.dataset)}
    folders = [order.raw] if order.raw is not None else [order.set_dir / "raw"]
    parts = find_parts(str(order.table["parts"]), folders)
    stamp = [[part.name, part.stat().st_size] for part in parts]
    done = order.journal.outcomes(archive_stage(order.name)).get(order.table["parts"])
    if not parts:
        if order.raw is not None:  # then the folder holds the clips themselves
            return
        raise UsageError(
            f"the parts {order.table['parts']}00, ... are not in {folders[0]}; {order.dataset.title} comes from "
            f"{order.dataset.access}; put them there, or type --raw with the folder that holds them or what is in them"
        )
    if done is not None and done.status == "ok" and done.data["parts"] == stamp:
        lost = [one for one in known.values() if one.status == "ok" and not (order.set_dir / one.data["path"]).exists()]
        if not lost:
            yield _missing(names, known, order)
            return
    _check_sequence(parts)
    clips = console.progress(_clips(parts, known, order), total=len(names), what="unpack")
    batch: list[Outcome] = []
    found = 0
    for clip in clips:
        batch.append(clip)
        known[clip.id] = clip
        found += clip.id in names
        if len(batch) >= BATCH:
            yield batch
            batch = []
        if order.limit is not None and found >= order.limit:
            yield batch
            return
    whole = Outcome(id=order.table["parts"], stage=archive_stage(order.name), status="ok", data={"parts": stamp})
    yield [*batch, whole, *_missing(names, known, order)]


def find_parts(prefix: str, folders: Sequence[Path]) -> list[Path]:
    """The parts below ``folders`` in order. Raises ``BadArchive`` naming the missing or repeated ones."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)")
    numbered = [
        (int(match[1]), Path(top, name))
        for folder in folders
        for top, _, names in os.walk(folder)
        for name in sorted(names)
        if (match := pattern.fullmatch(name))
    ]
    if not numbered:
        return []
    width = min(len(pattern.fullmatch(path.name)[1]) for _, path in numbered)  # type: ignore[index]
    counts = Counter(number for number, _ in numbered)
    for number, count in sorted(counts.items()):
        if count > 1:
            twice = ", ".join(str(path) for one, path in numbered if one == number)
            raise BadArchive(f"part {number} is there {count} times: {twice}; keep one of them")
    missing = [f"{prefix}{number:0{width}}" for number in range(max(counts)) if number not in counts]
    if missing:
        raise BadArchive(
            f"of the parts {prefix}{0:0{width}} to {prefix}{max(counts):0{width}} these are not there: "
            f"{', '.join(missing)}; fetch them and type the command again"
        )
    return [path for _, path in sorted(numbered)]


def _check_sequence(parts: Sequence[Path]) -> None:
    """Raise ``BadArchive`` for a part that is another one's bytes, or empty."""
    seen: dict[tuple[int, bytes], Path] = {}
    for part in parts:
        with part.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if not head:
            raise BadArchive(f"{part} is empty; fetch it again")
        first = seen.setdefault((part.stat().st_size, head), part)
        if first is not part:
            raise BadArchive(f"{part} repeats {first.name}: the same bytes under two names; fetch it again")


def _clips(parts: Sequence[Path], known: dict[str, Outcome], order: Order) -> Iterator[Outcome]:
    """One outcome for every clip in the stream that the journal does not have, when all of it is on disk."""
    stream = _Joined(parts)
    target = order.folder / "clips"
    unfinished = order.folder / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    pictures: list[unpack.Member] = []

    def place(member: PurePosixPath) -> Path | str:
        suffix = member.suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            return "done before" if _is_done(stem(member.name)) else target / member.name
        if suffix not in IMAGE_SUFFIXES or len(member.parts) < 2:
            return "no clip"
        return "done before" if _is_done(member.parent.name) else unfinished / member.parent.name / member.name

    def _is_done(clip: str) -> bool:
        return clip in known and known[clip].status == "ok" and (order.set_dir / known[clip].data["path"]).exists()

    def finish() -> Outcome:
        """Give a folder of pictures its name."""
        folder = pictures[0].path.parent
        final = target / folder.name
        if final.exists():  # left by a run that was killed before the journal knew
            shutil.rmtree(final)
        target.mkdir(parents=True, exist_ok=True)
        folder.rename(final)
        listing = "".join(f"{one.path.name} {one.sha256}\n" for one in sorted(pictures, key=lambda one: one.path.name))
        member = str(PurePosixPath(pictures[0].name).parent)
        size = sum(one.bytes for one in pictures)
        outcome = row(final, member, hashlib.sha256(listing.encode()).hexdigest(), size, len(pictures))
        pictures.clear()
        return outcome

    def row(path: Path, member: str, sha256: str, size: int, num_files: int) -> Outcome:
        data = {"path": str(path.relative_to(order.set_dir)), "from_s": None, "archive": order.table["parts"],
                "member": member, "bytes": size, "files": num_files}  # fmt: skip
        return Outcome(id=stem(path.name), stage=order.stage, key=sha256, status="ok", data=data)

    try:
        for entry in unpack.unpack(stream, str(order.table["parts"]), place, _write):
            if isinstance(entry, unpack.PassedOver):
                if entry.refused:
                    yield Outcome(id=entry.name, stage=f"{archive_stage(order.name)}:refused", status="failed",
                                  error=BadArchive.__name__, message=entry.why)  # fmt: skip
                continue
            if pictures and pictures[0].path.parent != entry.path.parent:
                yield finish()
            if entry.path.suffix.lower() in VIDEO_SUFFIXES:
                yield row(entry.path, entry.name, entry.sha256, entry.bytes, 1)
            else:
                pictures.append(entry)
        if pictures:
            yield finish()
    except BadArchive as error:
        raise BadArchive(f"{error}; {stream.where()}") from None
    finally:
        stream.close()


def _write(content: BinaryIO, path: Path) -> tuple[int, str]:
    """Pictures need no care of their own: their folder has no final name yet. Videos do."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return unpack.write_whole(content, path)
    data = content.read()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return len(data), hashlib.sha256(data).hexdigest()


def _missing(names: set[str], known: dict[str, Outcome], order: Order) -> list[Outcome]:
    what = f"not in the archive {order.table['parts']}*"
    return [
        Outcome(id=name, stage=order.stage, status="failed", error=Missing.__name__, message=what)
        for name in sorted(names)
        if name not in known
    ]


class _Joined:
    """Several files read as one."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._parts, self._number = parts, 0
        self._file = parts[0].open("rb")

    def read(self, size: int) -> bytes:
        while True:
            chunk = self._file.read(size)
            if chunk or self._number + 1 == len(self._parts):
                return chunk
            self._file.close()
            self._number += 1
            self._file = self._parts[self._number].open("rb")

    def where(self) -> str:
        """What to look at when the stream breaks off."""
        here = self._parts[self._number]
        sizes = Counter(part.stat().st_size for part in self._parts[:-1])
        odd = [part.name for part in self._parts[:-1] if part.stat().st_size != sizes.most_common(1)[0][0]]
        if odd:
            return f"it broke off in {here.name}; these have another size than the rest: {', '.join(odd)}"
        if self._number + 1 == len(self._parts):
            return f"it broke off in the last part, {here.name}: is it cut short, or is there another one after it?"
        return f"it broke off in {here.name}"

    def close(self) -> None:
        self._file.close()
