"""Which clips a set is asked for, and where each one's file is: from an official list or from people's own videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .annotations import SPLIT_NAMES, ClipSpec, class_folders, kinetics_csv, own_csv
from .catalog import Dataset
from .errors import UsageError
from .journal import Journal
from .sources import local

if TYPE_CHECKING:
    from .prepare import Request


def clips_asked_for(request: Request, dataset: Dataset | None, journal: Journal) -> tuple[set[str], list[ClipSpec]]:
    """The list and the file of every clip on it. Returns the splits that the list speaks for, and the clips."""
    raw = request.raw or (Path(known) if (known := journal.setting("raw")) else None)
    if raw is None:
        if dataset is None:
            raise UsageError(
                f"which folder holds the videos? type: python -m datakit prepare {request.name} --raw DIR ..."
            )
        raise UsageError(
            f"fetching {dataset.title} is not built yet; it can be had from {dataset.access}. With a copy "
            f"on disk type: make {request.name}-{request.variants[0].name} RAW=/videos"
            f" (python -m datakit prepare {request.name} --raw /videos --variant {request.variants[0].name})"
        )
    if not raw.is_dir():
        raise UsageError(f"{raw} is no folder; type --raw (make: RAW=) with the folder that holds the videos")
    raw = raw.resolve()
    journal.set_setting("raw", str(raw))
    if dataset is None:
        return _own_clips(request, raw, journal)
    specs: list[ClipSpec] = []
    splits = set()
    for split in dataset.splits:
        if request.splits and split.name not in request.splits:
            continue
        table = _annotation_file(request, dataset, split.files, raw)
        if table is None:
            if request.splits:
                raise UsageError(
                    f"the official list of {dataset.title} {split.name} is not there "
                    f"(looked for {', '.join(split.files)} in "
                    f"{', '.join(map(str, _annotation_folders(request, raw)))}); fetch {split.url} into one of them, "
                    f"or type --annotations FILE (make: ANNOTATIONS=FILE)"
                )
            continue
        rows = kinetics_csv(table, split.name, dataset.classes)
        if len(rows) != split.rows:
            print(f"note: {table} has {len(rows)} clips, the official list {split.rows}", file=sys.stderr)
        specs += rows
        splits.add(split.name)
    for name in request.splits:
        dataset.split(name)  # a misspelt split is an error with the known ones
    if not specs:
        first = dataset.splits[0]
        raise UsageError(
            f"no official list found for {request.name}; type --annotations FILE, such as one from {first.url}"
        )
    return splits, local.find(specs, raw, dataset.clip_names)


def _own_clips(request: Request, raw: Path, journal: Journal) -> tuple[set[str], list[ClipSpec]]:
    for name in request.splits:
        if name not in SPLIT_NAMES:
            raise UsageError(
                f"no split {name!r}; type --split with one of: {', '.join(sorted(set(SPLIT_NAMES.values())))}"
            )
    wanted = {SPLIT_NAMES[name] for name in request.splits}
    default = request.splits[0] if request.splits else "val"
    # A second run that names neither folder nor list means those of the first.
    labels = request.labels or (Path(known) if not request.raw and (known := journal.setting("labels")) else None)
    journal.set_setting("labels", str(labels.resolve()) if labels else "")
    if labels:
        specs = own_csv(labels, raw, default)
    else:
        specs, passed_over = class_folders(raw, default)
        if passed_over:
            print(f"note: {passed_over} files below {raw} have no video suffix and were passed over", file=sys.stderr)
        if (raw / "labels.csv").is_file():
            print(
                f"note: labels come from the folders; to use the list type --labels {raw / 'labels.csv'}",
                file=sys.stderr,
            )
    if not request.splits and {spec.split for spec in specs} == {default}:
        print(
            f"note: nothing says which split the clips are in; all are {default!r} (--split changes that)",
            file=sys.stderr,
        )
    if without := sum(spec.label is None for spec in specs):
        print(f"note: {without} clips have no label; lists say -1", file=sys.stderr)
    there = {spec.split for spec in specs}
    if wanted - there:
        raise UsageError(
            f"no clip is in split {min(wanted - there)!r}; type --split with one of: {', '.join(sorted(there))}"
        )
    if wanted:
        return wanted, [spec for spec in specs if spec.split in wanted]
    # The whole list is this one: a clip that left it leaves the set.
    return set(SPLIT_NAMES.values()), specs


def _annotation_folders(request: Request, raw: Path) -> list[Path]:
    return [
        raw,
        raw / "annotations",
        raw.parent / "annotations",
        request.set_dir / "raw",
        request.set_dir / "raw/annotations",
    ]


def _annotation_file(request: Request, dataset: Dataset, names: Sequence[str], raw: Path) -> Path | None:
    given = request.annotations
    if given is not None and given.is_file():
        # One file speaks for one split: the one asked for, or the one its name says.
        if len(request.splits) == 1 or given.name in names:
            return given
        if any(given.name in split.files for split in dataset.splits):
            return None
        raise UsageError(f"which split does {given} list? type one --split (make: SPLIT=val)")
    if given is not None and not given.is_dir():
        raise UsageError(f"{given} is not there; type --annotations with the official CSV or the folder that holds it")
    folders = [given] if given is not None else _annotation_folders(request, raw)
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)
