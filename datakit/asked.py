"""Which clips a set is asked for: from official lists, found or fetched, or from people's own videos."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from . import files, official
from .annotations import SPLIT_NAMES, ClipSpec, class_folders, own_csv
from .catalog import Dataset, ListFile, Split
from .errors import BadManifest, ItemError, UsageError
from .journal import Journal
from .sources import http

if TYPE_CHECKING:
    from .prepare import Request


def clips_asked_for(request: Request, dataset: Dataset | None, journal: Journal) -> tuple[set[str], list[ClipSpec]]:
    """Every clip on the list. Returns the splits that the list speaks for, and the clips.

    People's own videos have their files; the files of a data set are found by ``fetch``.
    """
    request = replace(request, splits=tuple(SPLIT_NAMES.get(name.lower(), name) for name in request.splits))
    raw = request.raw or (Path(known) if (known := journal.setting("raw")) else None)
    if raw is None and dataset is None:
        raise UsageError(f"which folder holds the videos? type: python -m datakit prepare {request.name} --raw DIR ...")
    if raw is None and dataset is not None and not dataset.sources:
        variant = request.variants[0].name if request.variants else dataset.variants[0]
        raise UsageError(
            f"{dataset.title} cannot be fetched by a program; it can be had from {dataset.access}. With a copy "
            f"on disk type: make {request.name}-{variant} RAW=/videos"
            f" (python -m datakit prepare {request.name} --raw /videos --variant {variant})"
        )
    if raw is not None:
        if not raw.is_dir():
            raise UsageError(f"{raw} is no folder; type --raw (make: RAW=) with the folder that holds the videos")
        raw = raw.resolve()
        journal.set_setting("raw", str(raw))
    if dataset is not None:
        return _official_clips(request, dataset, journal, raw)
    assert raw is not None
    return _own_clips(request, raw, journal)


def _official_clips(
    request: Request, dataset: Dataset, journal: Journal, raw: Path | None
) -> tuple[set[str], list[ClipSpec]]:
    """The lists that were asked for, else those that lie here, else all that say what their clips show."""
    for name in request.splits:
        dataset.split(name)  # a misspelt split is an error with the known ones
    _check_given(request, dataset)
    asked = [split for split in dataset.splits if split.name in request.splits or not request.splits]
    lists = {split: path for split in asked if (path := _list_here(request, split, raw)) is not None}
    if not lists or request.splits:
        wanted = [split for split in asked if split not in lists and (request.splits or split.labelled)]
        if request.annotations is not None and wanted:
            raise UsageError(_not_here(request, dataset, wanted[0], raw))
        lists |= {split: _fetch(request, dataset, split, raw) for split in wanted}
    elif lacking := [split for split in asked if split.labelled and split not in lists]:
        names = " ".join(f"--split {split.name}" for split in asked if split in lists or split in lacking)
        have_them = f"{names} fetches it" if all(split.urls for split in lacking) else f"it comes from {dataset.access}"
        print(f"note: no list of {' and '.join(split.name for split in lacking)} here; {have_them}", file=sys.stderr)
    specs: list[ClipSpec] = []
    for split, path in lists.items():
        clips = official.read(path, dataset, split, _times(request, dataset, split, path, raw))
        official.say_differences(clips, path, split)
        specs += clips
    if not dataset.classes:
        names_found = sorted({spec.label for spec in specs if spec.label})
        dataset.check_classes(names_found, ", ".join(map(str, lists.values())))
        journal.set_setting("classes", "\n".join(names_found))
    return {split.name for split in lists}, specs


def _check_given(request: Request, dataset: Dataset) -> None:
    given = request.annotations
    if given is not None and not given.exists():
        raise UsageError(f"{given} is not there; type --annotations with the official list or the folder that holds it")
    named = given is not None and any(given.name in split.files for split in dataset.splits)
    if given is not None and given.is_file() and not named and len(request.splits) != 1:
        raise UsageError(f"which split does {given} list? type one --split (make: SPLIT=val)")


def _list_here(request: Request, split: Split, raw: Path | None) -> Path | None:
    given = request.annotations
    if given is not None and given.is_file():
        # One file speaks for one split: the one asked for, or the one its name says.
        if request.splits == (split.name,) or given.name in split.files:
            return given
        return None
    return _search(split.files, [given] if given is not None else _annotation_folders(request, raw))


def _times(request: Request, dataset: Dataset, split: Split, path: Path, raw: Path | None) -> Path | None:
    """The file with the times of a list, where the format keeps them apart. Without it nothing can be cut."""
    if dataset.times is None:
        return None
    names = [name.format(split=split.name) for name in dataset.times.files]
    here = _search(names, [path.parent, *_annotation_folders(request, raw)])
    if here is not None:
        return here
    try:
        return _fetch(request, dataset, dataset.times, raw)
    except UsageError as error:
        print(f"note: {error}; without it only files that are cut already are found", file=sys.stderr)
        return None


def _search(names: Iterable[str], folders: Iterable[Path]) -> Path | None:
    names = list(names)
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _fetched_folder(request: Request) -> Path:
    return request.set_dir / "raw"


def _annotation_folders(request: Request, raw: Path | None) -> list[Path]:
    fetched = _fetched_folder(request)
    return [*([raw, raw / "annotations", raw.parent / "annotations"] if raw else []), fetched, fetched / "annotations"]


def _fetch(request: Request, dataset: Dataset, wanted: ListFile, raw: Path | None) -> Path:
    """The first of the published copies that can be had. Raises ``UsageError`` saying where to put it by hand."""
    folder = _fetched_folder(request) / "annotations"
    patience = http.Patience(tries=3, first_pause_s=0.5)  # for small files: who has no network shall know it soon
    failures = []
    for url in wanted.urls:
        address, _, member = http.mirrored(url, request.fetching.mirror).partition("#")
        name = PurePosixPath(address).name
        path = folder / (member or name if (member or name) in wanted.files else wanted.files[0])
        print(f"fetching {url}", file=sys.stderr)
        try:
            got = http.download(address, folder / name if member else path, patience=patience).path
        except ItemError as error:
            failures.append(str(error))
            continue
        if not member:
            return path
        try:
            _extract(got, member, path)
            return path
        except BadManifest as error:
            got.unlink()  # else the next run would find it whole
            failures.append(str(error))
    raise UsageError(_not_here(request, dataset, wanted, raw, failures))


def _not_here(
    request: Request, dataset: Dataset, wanted: ListFile, raw: Path | None, failures: Iterable[str] = ()
) -> str:
    what = "the official list of" if isinstance(wanted, Split) else "the file of times of"
    what += f" {dataset.title} {wanted.name}" if isinstance(wanted, Split) else f" {dataset.title}"
    other_names = f" (or under the name {' or '.join(wanted.files[1:])})" if wanted.files[1:] else ""
    where = (
        f"put {wanted.files[0]}{other_names} into {_fetched_folder(request) / 'annotations'}, "
        f"or type --annotations FILE (make: ANNOTATIONS=FILE)"
    )
    if not wanted.urls:
        return f"{what} is not there and cannot be fetched by a program: it comes from {dataset.access}; {where}"
    folders = [request.annotations] if request.annotations is not None else _annotation_folders(request, raw)
    reasons = "".join(f" ({failure})" for failure in failures)
    return (
        f"{what} is not there (looked for {', '.join(wanted.files)} in {', '.join(map(str, folders))}); "
        f"fetch {' or '.join(wanted.urls)}{reasons}, then {where}"
    )


def _extract(archive: Path, member: str, path: Path) -> None:
    """Have one file of a zip or tar archive at ``path``, whatever folder it is packed in. Raises ``BadManifest``."""

    def place(source: IO[bytes]) -> None:
        with source, files.replacing(path) as part, part.open("wb") as target:
            shutil.copyfileobj(source, target)

    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    if PurePosixPath(name).name == member:
                        return place(packed.open(name))
        else:
            with tarfile.open(archive) as unpacked:
                for entry in unpacked:
                    if PurePosixPath(entry.name).name == member and (source := unpacked.extractfile(entry)):
                        return place(source)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise BadManifest(f"{archive}: {error}") from None
    raise BadManifest(f"{archive} holds no {member}")


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
