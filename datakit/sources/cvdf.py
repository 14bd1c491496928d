"""Clips in archives over HTTP: a list file for each split names them, one tar.gz a line.

    [sources.cvdf]
    lists = {val = "https://.../k400_val_path.txt"}       one address a line, spaces and all
    replacements = {train = "https://....tgz"}            better copies of broken clips of that split

Every archive is downloaded, gone through and, unless it is to be kept, deleted when its clips are in the journal. Its
clips lie in a folder of its own, without the folders it had inside; so each one's path says where it came from.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from .. import console, runner
from ..annotations import VIDEO_SUFFIXES, ClipSpec, safe_name, stem
from ..errors import BadArchive, Gone, Missing, Retryable
from ..journal import Outcome
from . import Order, archive_stage, http, local, unpack

AT_ONCE = (2, 8)  # downloads: fewer leave the line idle, more annoy the server
SAMPLED = 4  # archives that are asked for their size before a long fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One archive, and where it goes. ``rank``: of two files for one clip the one of the lower rank counts."""

    id: str
    url: str
    rank: int
    file: Path
    folder: Path
    stage: str
    patience: http.Patience


def fetch(specs: Sequence[ClipSpec], order: Order) -> Iterator[list[Outcome]]:
    """Have the archives of the splits that ``specs`` are in, as many as are needed."""
    known = order.journal.outcomes(order.stage)
    names = {spec.id: local.clip_file_names(spec, order.dataset) for spec in specs}
    owners = {name: spec.id for spec in reversed(specs) for name in reversed(names[spec.id])}
    lacking = {id_ for id_ in names if not any(_there(known.get(name), order) for name in names[id_])}
    if not lacking:
        return
    all_archives = archives({spec.split for spec in specs}, order)
    ranks = {archive.id: archive.rank for archive in all_archives}
    done = order.journal.outcomes(archive_stage(order.name))
    # An archive is done only as long as what is asked for of it is still there.
    lost = {known[name].data["archive"] for id_ in lacking for name in names[id_] if name in known and known[name].key}
    left = [one for one in all_archives if one.id in lost or not _settled(done.get(one.id), order)]
    enough = max(0, len(lacking) - order.limit) if order.limit is not None else 0
    at_once = min(max(AT_ONCE[0], order.num_jobs), AT_ONCE[1])
    while left and len(lacking) > enough:
        batch = left[: at_once if order.limit is not None else None]
        left = left[len(batch) :]
        by_id = {archive.id: archive for archive in batch}
        outcomes = runner.run(
            get, batch, name=lambda one: one.id, stage=archive_stage(order.name), num_jobs=at_once, notes=order.notes
        )
        for outcome in console.progress(outcomes, total=len(batch), what=f"{order.name} archives"):
            clips = _clips(outcome, by_id[outcome.id], order, known, ranks)
            known |= {clip.id: clip for clip in clips}
            lacking -= {owners[clip.id] for clip in clips if clip.id in owners}
            yield [replace(outcome, data={key: outcome.data[key] for key in outcome.data if key != "taken"}), *clips]
            if not order.options.keep_archives:  # what was in it is in the journal now
                by_id[outcome.id].file.unlink(missing_ok=True)
            for what in ("lock", "broken"):
                _note_of(by_id[outcome.id], what).unlink(missing_ok=True)
            _say_what_was_wrong(outcome)
    if not left:
        done |= order.journal.outcomes(archive_stage(order.name))
        yield [row for id_ in sorted(lacking) if (row := _missing(id_, all_archives, done, order)) != known.get(id_)]


def archives(splits: set[str], order: Order) -> list[Archive]:
    """The archives of these splits, replacements first. Reads the list files."""
    # Who has no network shall know it soon.
    patience = replace(order.options.patience, tries=min(order.options.patience.tries, 4))
    found = []
    for split in sorted(splits & set(order.table["lists"])):
        if url := order.table.get("replacements", {}).get(split):
            found.append((f"{split}/replacement.tgz", http.mirrored(url, order.options.mirror)))
        list_url = http.mirrored(order.table["lists"][split], order.options.mirror)
        for line in http.read_text(list_url, patience=patience).splitlines():
            if line.strip():
                url = http.mirrored(urljoin(list_url, http.quoted(line)), order.options.mirror)
                name = PurePosixPath(unquote(urlsplit(url).path)).name
                found.append((f"{split}/{name}", url))
    return [
        Archive(
            id=id_,
            url=url,
            rank=rank,
            file=order.folder / "archives" / _plain(id_),
            folder=order.folder / _plain(re.sub(r"\.(tar|tgz|tar\.gz)$", "", id_)),
            stage=archive_stage(order.name),
            patience=order.options.patience,
        )
        for rank, (id_, url) in enumerate(dict(found).items())
    ]


def size(splits: set[str], order: Order) -> tuple[int, int]:
    """(archives that are left, about how many bytes they have), from the sizes of a few of them."""
    done = order.journal.outcomes(archive_stage(order.name))
    left = [one for one in archives(splits, order) if not _settled(done.get(one.id), order)]
    sample = left[:: max(1, len(left) // SAMPLED)][:SAMPLED]
    sizes = [size for one in sample if (size := http.size_of(one.url, order.options.patience))]
    return len(left), len(left) * sum(sizes) // max(1, len(sizes))


def get(archive: Archive) -> Outcome:
    """In a worker: download one archive and take its clips out. One that is broken is downloaded a second time."""
    archive.file.parent.mkdir(parents=True, exist_ok=True)
    with _note_of(archive, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a worker whose run was killed may still be at it
        return _get(archive)


def _get(archive: Archive) -> Outcome:
    received = 0
    once_broken = _note_of(archive, "broken")  # a kill must not start the count again
    while True:
        downloaded = http.download(archive.url, archive.file, patience=archive.patience)
        received += downloaded.received_bytes
        taken: list[list[Any]] = []
        passed_over: list[list[Any]] = []
        broken = ""
        try:
            _take_out(archive, taken, passed_over)
        except BadArchive as error:
            broken = str(error)
            last = once_broken.exists()
            once_broken.touch()
            archive.file.unlink()
            if not last:
                continue
        break
    data = {"url": archive.url, "bytes": downloaded.bytes, "received_bytes": received, "clips": len(taken)}
    return Outcome(
        id=archive.id,
        stage=archive.stage,
        status="failed" if broken else "ok",
        error=BadArchive.__name__ if broken else "",
        message=broken,
        data={**data, "passed_over": passed_over, "taken": taken},
    )


def _note_of(archive: Archive, what: str) -> Path:
    return archive.file.with_name(f"{archive.file.name}.{what}")


def _take_out(archive: Archive, taken: list[list[Any]], passed_over: list[list[Any]]) -> None:
    shutil.rmtree(archive.folder, ignore_errors=True)  # what a killed run left of it
    seen: set[str] = set()

    def place(member: PurePosixPath) -> Path | str:
        if member.suffix.lower() not in VIDEO_SUFFIXES:
            return "no video"
        if member.name.casefold() in seen:
            return "a second file of this name"
        seen.add(member.name.casefold())
        return archive.folder / member.name

    with archive.file.open("rb") as stream:
        for entry in unpack.unpack(stream, archive.id, place, unpack.write_whole):
            if isinstance(entry, unpack.Member):
                taken.append([entry.name, entry.path.name, entry.bytes, entry.sha256])
            else:
                passed_over.append([entry.name, entry.why, entry.refused])


def _clips(
    outcome: Outcome, archive: Archive, order: Order, known: dict[str, Outcome], ranks: dict[str, int]
) -> list[Outcome]:
    """Journal rows of the clips that came out of one archive, but for those that a better archive had."""
    rows = []
    for member, file, size, sha256 in outcome.data.get("taken", []):
        before = known.get(stem(file))
        if before is not None and _there(before, order) and ranks.get(before.data["archive"], -1) < archive.rank:
            continue
        path = (archive.folder / file).relative_to(order.set_dir)
        data = {"path": str(path), "from_s": None, "archive": archive.id, "member": member, "bytes": size}
        rows.append(Outcome(id=stem(file), stage=order.stage, key=sha256, status="ok", data=data))
    return rows


def _missing(id_: str, all_archives: Sequence[Archive], done: dict[str, Outcome], order: Order) -> Outcome:
    bad = [done[one.id] for one in all_archives if one.id in done and done[one.id].status != "ok"]
    again = [archive for archive in bad if not _settled(archive, order)]
    what = f"in none of the {len(all_archives)} archives of {order.name}"
    if bad:
        what += f", of which {len(bad)} could not be had or are broken: {bad[0].id}"
    error = Retryable if again else Missing
    return Outcome(id=id_, stage=order.stage, status="failed", error=error.__name__, message=what)


def _there(clip: Outcome | None, order: Order) -> bool:
    return clip is not None and clip.status == "ok" and (order.set_dir / clip.data["path"]).is_file()


def _settled(archive: Outcome | None, order: Order) -> bool:
    """Whether nothing is to be expected of an archive: it was gone through, or is broken or gone for good."""
    if archive is None:
        return False
    return archive.status == "ok" or (
        archive.error in (BadArchive.__name__, Gone.__name__) and not order.options.retry_gone
    )


def _say_what_was_wrong(outcome: Outcome) -> None:
    if outcome.status != "ok":
        print(f"note: {outcome.id}: {outcome.error}: {outcome.message}", file=sys.stderr)
    for member, why, refused in outcome.data.get("passed_over", []):
        if refused:
            print(f"note: {outcome.id}: refused {member!r}: {why}", file=sys.stderr)


def _plain(id_: str) -> PurePosixPath:
    """``split/name of the archive`` as a path that cannot lead anywhere else."""
    split, _, name = id_.partition("/")
    return PurePosixPath(safe_name(split), safe_name(name))
