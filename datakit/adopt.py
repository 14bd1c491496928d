"""Somebody else's copy as a variant like any other: what ``python -m datakit adopt`` does.

    their files, by their list or ours -> each decoded to the end, measured and hashed -> manifest, lists and lock

Nothing in the copy is changed, and nothing of it is copied: the paths in the manifest point into its folder. What is
adopted has a journal of its own in the variant's folder, as its list is its own; the run can be killed and goes on.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import asked, catalog, console, encode, folders, labels, lists, manifest, prepare, probe, runner
from .annotations import JOURNAL, SPLIT_NAMES, ClipSpec, Spelling, class_folders, safe_name, stem
from .catalog import Dataset
from .errors import BadManifest, Damaged, ItemError, Refused, UsageError
from .journal import Journal, Outcome
from .manifest import ListEntry
from .sources import local

STAGE = "adopt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for. ``allow_damaged``: share of the frames. ``split`` empty: as the list's name says,
    or as the folders do."""

    name: str
    data_root: Path
    root: Path
    variant: str
    list_file: Path | None
    classes: Path | None
    annotations: Path | None
    label_order: str | None
    split: str
    num_jobs: int
    allow_damaged: float
    retry_failed: bool

    @property
    def folder(self) -> Path:
        return self.data_root / self.name / self.variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    id: str
    path: Path


def adopt(request: Request) -> dict[str, int]:
    """Do all of it; returns counts by status. Raises ``UsageError``, ``DataError``.

    What is wrong with a single file is no error but its status.
    """
    _check(request)
    dataset = catalog.dataset(request.name)
    with Journal.open(request.folder / JOURNAL) as journal:
        splits, specs, numbered = _clips(request, dataset, journal)
        journal.replace_clips(splits, specs)
        journal.set_setting("adopted", str(request.root.resolve()))
        journal.set_setting("adopted_classes", "\n".join(numbered))
        journal.set_setting("label_order", request.label_order or labels.OFFICIAL)
        journal.set_setting("allow_damaged", str(request.allow_damaged))
        known = journal.outcomes(STAGE)
        jobs = [
            Job(id=spec.id, path=spec.source)
            for spec in specs
            if spec.source is not None and not _settled(known.get(spec.id), spec.source, request.retry_failed)
        ]
        there = sum(spec.source is not None for spec in specs)
        print(
            f"{request.name}: {len(specs)} clips, {there} found in {request.root}, {len(jobs)} to decode and measure "
            f"with {request.num_jobs} jobs; nothing there is changed",
            file=sys.stderr,
        )
        with tempfile.TemporaryDirectory() as notes:
            outcomes = runner.run(
                adopt_one, jobs, name=lambda job: job.id, stage=STAGE, num_jobs=request.num_jobs, notes=Path(notes)
            )
            for outcome in console.progress(outcomes, total=len(jobs), what="adopt"):
                journal.add([outcome])
        return write(request.folder, journal)


def is_adopted(folder: Path) -> bool:
    """Whether a variant's folder stands for somebody else's copy."""
    return (folder / JOURNAL).is_file()


def write(folder: Path, journal: Journal) -> dict[str, int]:
    """Manifest, lists and lock of an adopted variant; returns how many clips have which status."""
    rows = table(journal)
    order = journal.setting("label_order") or labels.OFFICIAL
    lists.write_lists(folder, rows, classes(journal), order)
    definition = {"adopted": journal.setting("adopted"), **_common_size(rows)}
    lock = lists.lock_of(folder.parent.name, folder.name, rows, _allowed(journal))
    own = {"variant_hash": catalog.digest(definition), "definition": definition, "label_order": order}
    manifest.write(folder, rows, {**lock, **own})
    return dict(Counter(row["status"] for row in rows))


def classes(journal: Journal) -> list[str]:
    """Class names as the lists of an adopted variant number them."""
    known = journal.setting("adopted_classes")
    return known.split("\n") if known else []


def renumber(journal: Journal, dataset: Dataset | None, order: str) -> None:
    """Have the lists number the classes in another order. Raises as ``labels.ordered``."""
    official = dataset.classes if dataset is not None and dataset.classes else sorted(classes(journal))
    journal.set_setting("adopted_classes", "\n".join(labels.ordered(official, order, dataset)))
    journal.set_setting("label_order", Path(order).name if Path(order).is_file() else order)


def table(journal: Journal) -> list[dict[str, Any]]:
    """A manifest row for every clip of the list, as the journal and the disk are now."""
    place = {name: number for number, name in enumerate(classes(journal))}
    allowed = _allowed(journal)
    known = journal.outcomes(STAGE)
    return [_row(spec, known.get(spec.id), place, allowed) for spec in journal.clips()]


def _allowed(journal: Journal) -> float:
    return float(journal.setting("allow_damaged") or 2.0)


def _row(spec: ClipSpec, found: Outcome | None, place: dict[str, int], allowed: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": spec.id,
        "label": spec.label,
        "label_index": place[spec.label] if spec.label else -1,
        "split": spec.split,
        "path": None,
        "source": spec.source.name if spec.source else None,
        "reason": None,
    }
    if spec.source is None:
        return {**row, "status": "missing", "reason": "no file of that name"}
    if not spec.source.exists():
        return {
            **row,
            "status": "lost" if found and found.status != "failed" else "missing",
            "reason": f"{spec.source} is not there",
        }
    if found is None or found.data.get("path") != str(spec.source):
        return {**row, "status": "pending"}
    if found.status == "failed":
        return {**row, "status": found.error.lower(), "reason": found.message}
    row |= {"status": found.status, "reason": found.message or None}
    facts = {name: found.data[name] for name in lists.FACTS}
    if prepare.is_longer(spec, facts["duration_s"]):
        what = f"{facts['duration_s']:.0f} s long, so the whole video and not the clip; prepare cuts clips out of it"
        return {**row, "status": Refused.__name__.lower(), "reason": what}
    if found.status == "damaged" and found.data["share"] < allowed:
        return row
    if not row["reason"] and facts["duration_s"]:  # pictures have no clock
        row["reason"] = prepare.short(spec, facts["duration_s"]) or None
    return {**row, **facts, "path": str(spec.source), "source_sha256": found.data["sha256"]}


def _common_size(rows: Iterable[dict[str, Any]]) -> dict[str, int]:
    """What all files agree on, by which a protocol finds the copy made with its size."""
    sizes = {(row["width"], row["height"]) for row in rows if row["path"]}
    if len(sizes) == 1:
        width, height = sizes.pop()
        return {"width_px": width, "height_px": height, "short_side_px": min(width, height)}
    short = {min(size) for size in sizes}
    return {"short_side_px": short.pop()} if len(short) == 1 else {}


def adopt_one(job: Job) -> Outcome:
    """In a worker: decode one file to the end. ok, damaged with the share of its frames, or failed."""
    stat = folders.stat(job.path)
    at = {"path": str(job.path), "stat": stat}
    try:
        promised = _promised_frames(job.path)  # first: it says best what is wrong with a file
        checked, broken, complaints = encode.examine(job.path)
    except ItemError as error:
        message = str(error).replace(f"{job.path}: ", "").replace(f"{job.path.name}: ", "")
        return Outcome(id=job.id, stage=STAGE, status="failed", error=type(error).__name__, message=message, data=at)
    facts = asdict(checked)
    del facts["tag"]
    expected = promised or checked.frames
    share = min(1.0, checked.frames / max(1, expected))
    data = {**at, **facts, "encoder": "theirs", "share": round(share, 4)}
    reason = broken or complaints or ("the file ends before its header says" if share < 0.9 else "")
    if not reason:
        return Outcome(id=job.id, stage=STAGE, key=checked.sha256, status="ok", data=data)
    message = f"{checked.frames} of {expected} frames can be decoded: {reason}"
    return Outcome(
        id=job.id, stage=STAGE, key=checked.sha256, status="damaged", error=Damaged.__name__, message=message, data=data
    )


def _promised_frames(path: Path) -> int | None:
    """How many frames the file's header says it has; ``None`` where nothing says so."""
    if path.is_dir():
        return None
    try:
        return probe.media_info(path).expected_frames
    except Refused:  # HDR: no picture for our variants, but theirs may be what it likes
        return None


def _settled(known: Outcome | None, path: Path, retry_failed: bool) -> bool:
    if known is None or known.data.get("path") != str(path) or known.data.get("stat") != folders.stat(path):
        return False
    return known.status != "failed" or not (retry_failed or known.error in {"Retryable", "WorkerDied", "Bug"})


# --- which files are which clips --------------------------------------------------------------------------------------


def _check(request: Request) -> None:
    if not request.root.is_dir():
        raise UsageError(f"{request.root} is no folder; type --root with the folder that holds the copy")
    if request.variant != safe_name(request.variant) or request.variant.startswith("."):
        raise UsageError(f"{request.variant!r} becomes a folder; type --variant with a plain name such as theirs-256")
    base = request.variant.removesuffix(catalog.FRAMES_SUFFIX)
    made_here = (request.folder / "manifest.lock").exists() and not is_adopted(request.folder)
    if base in catalog.variant_names() or made_here:
        raise UsageError(f"{request.variant} is a variant that is made here; type --variant theirs-{base}")
    for given in (request.list_file, request.classes):
        if given is not None and not given.is_file():
            raise UsageError(f"{given} is not there; type --list FILE [--classes FILE]")
    if request.split and request.split not in SPLIT_NAMES:
        raise UsageError(f"no split {request.split!r}; type --split with one of: test, train, val")


def _clips(
    request: Request, dataset: Dataset | None, journal: Journal
) -> tuple[set[str], list[ClipSpec], tuple[str, ...]]:
    """The splits that the list speaks for, its clips with their files, and the classes in label order."""
    split = SPLIT_NAMES[request.split] if request.split else _split_of(request.list_file)
    if request.list_file is None:
        splits, specs = _official(request, dataset, journal, split) if dataset else (set[str](), [])
        if not specs:
            specs, _ = class_folders(request.root.resolve(), split or "val")
            specs = _spelled(specs, dataset, request.root)
            splits = {spec.split for spec in specs}
    else:
        split = split or "val"
        _, official = _official(request, dataset, journal, split) if dataset else (set(), [])
        splits, specs = {split}, _listed(request, dataset, official, split)
    return splits, specs, _classes(request, dataset, specs)


def _split_of(list_file: Path | None) -> str:
    if list_file is None:
        return ""
    words = list_file.stem.lower().replace("-", "_").replace(".", "_").split("_")
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _official(request: Request, dataset: Dataset, journal: Journal, split: str) -> tuple[set[str], list[ClipSpec]]:
    """The official list with the copy's files; none when it cannot be had: then the copy's own names must do."""
    try:
        splits, specs = asked.clips_asked_for(
            prepare.Request(
                name=request.name,
                data_root=request.data_root,
                raw=request.root,
                labels=None,
                annotations=request.annotations,
                splits=(split,) if split else (),
                variants=(),
                num_jobs=request.num_jobs,
                limit=None,
                allow_damaged=request.allow_damaged,
                retry_failed=False,
            ),
            dataset,
            journal,
        )
    except UsageError as error:
        if request.annotations is not None:
            raise
        print(f"note: {error}; without it the copy's own names and labels are taken", file=sys.stderr)
        return set(), []
    found = local.find(specs, request.root.resolve(), dataset)
    # A longer video is no copy of the clip.
    return splits, [replace(spec, source=None, cut_s=None) if spec.cut_s else spec for spec in found]


def _listed(request: Request, dataset: Dataset | None, official: Sequence[ClipSpec], split: str) -> list[ClipSpec]:
    """Clips of somebody's list: under their official id and class where the official list has their file."""
    assert request.list_file is not None
    root = request.root.resolve()
    entries = manifest.list_entries(request.list_file, root)
    names = _numbered_classes(request, dataset, entries)
    find = _Finder(root, dataset)
    by_name = _by_clip_name(official, dataset)
    found: list[ClipSpec] = []
    other_labels = unofficial = 0
    for entry in entries:
        path = find(entry.path)
        name = stem(Path(entry.path).name)
        label = names[entry.label] if entry.label >= 0 else None
        ours = by_name.get(name)
        if ours is not None:
            other_labels += label is not None and ours.label is not None and label != ours.label
            found.append(replace(ours, source=path, split=split, label=ours.label or label, cut_s=None))
            continue
        unofficial += bool(official)
        found.append(ClipSpec(id=safe_name(name), video=name, split=split, label=label, source=path))
    if unofficial:
        print(f"note: {unofficial} clips of {request.list_file} are on no official list", file=sys.stderr)
    if other_labels:
        print(
            f"note: {request.list_file} gives {other_labels} clips another class than the official list, which is "
            f"believed; if these are many, the numbers are in another order (--label-order)",
            file=sys.stderr,
        )
    twice = [clip_id for clip_id, count in Counter(spec.id for spec in found).items() if count > 1]
    if twice:
        paths = [safe_name(stem(entry.path)).replace("/", "__") for entry in entries]
        if len(set(paths)) < len(paths) or official:
            raise BadManifest(f"{request.list_file} lists {twice[0]} twice")
        found = [replace(spec, id=safe_name(path)) for spec, path in zip(found, paths, strict=True)]
    return sorted(found, key=lambda spec: spec.id)


def _by_clip_name(official: Iterable[ClipSpec], dataset: Dataset | None) -> dict[str, ClipSpec]:
    """Official clips by every published name of a file that is just the clip; names that fit two say nothing."""
    if dataset is None:
        return {}
    named = [(name, spec) for spec in official for name in set(local.clip_file_names(spec, dataset))]
    counts = Counter(name for name, _ in named)
    return {name: spec for name, spec in named if counts[name] == 1}


def _numbered_classes(
    request: Request, dataset: Dataset | None, entries: Sequence[ListEntry]
) -> tuple[str, ...] | list[str]:
    """The class name of every number in the list."""
    highest = max((entry.label for entry in entries), default=-1)
    if request.classes is not None:
        names: Sequence[str] = labels.read_file(request.classes)
        if dataset is not None and dataset.classes:
            names = labels.ordered(dataset.classes, str(request.classes), dataset)
    elif dataset is not None and dataset.classes:
        names = labels.ordered(dataset.classes, request.label_order or labels.OFFICIAL, dataset)
    else:
        names = [str(number) for number in range(highest + 1)]
    if highest >= len(names):
        where = request.classes or request.name
        raise BadManifest(f"{request.list_file} has label {highest}, {where} names only {len(names)} classes")
    return list(names)


def _classes(request: Request, dataset: Dataset | None, specs: Iterable[ClipSpec]) -> tuple[str, ...]:
    """All classes in the order in which our lists number them: the copy's own."""
    if dataset is not None and dataset.classes:
        return labels.ordered(dataset.classes, request.label_order or labels.OFFICIAL, dataset)
    if request.classes is not None:
        return tuple(labels.read_file(request.classes))
    found = {spec.label for spec in specs if spec.label}
    if request.list_file is not None and all(name.isdigit() for name in found):
        return tuple(str(number) for number in range(max(map(int, found), default=-1) + 1))
    return tuple(sorted(found))


def _spelled(specs: Sequence[ClipSpec], dataset: Dataset | None, root: Path) -> list[ClipSpec]:
    """Class folders in the data set's own spelling. Raises ``BadManifest`` for one that is no class."""
    if dataset is None or not dataset.classes:
        return list(specs)
    spelling = Spelling(dataset.classes)
    known = {label: spelling.find(label) for label in {spec.label for spec in specs if spec.label}}
    if unknown := sorted(label for label, ours in known.items() if ours is None):
        raise BadManifest(f"{root}: the folder {unknown[0]!r} is no class of {dataset.title}; type --list FILE")
    return [replace(spec, label=known[spec.label] if spec.label else None) for spec in specs]


class _Finder:
    """Where a listed file is below ``root``: as listed, below a part of the listed path, else anywhere by its name."""

    def __init__(self, root: Path, dataset: Dataset | None) -> None:
        self._root = root
        self._pictures = dataset is not None and bool(dataset.layout.frame_names)
        self._index: dict[str, list[Path]] | None = None

    def __call__(self, listed: str) -> Path | None:
        parts = Path(listed).parts
        for start in range(len(parts)):  # lists of others often hold paths of the machine that made them
            path = self._root.joinpath(*parts[start:])
            if path.is_relative_to(self._root) and path.exists():
                return path
        if self._index is None:
            self._index = local.index(self._root)
            if self._pictures:
                self._index = {**self._index, **local.index(self._root, pictures=True)}
        found = self._index.get(stem(Path(listed).name), [])
        return found[0] if len(found) == 1 else None
