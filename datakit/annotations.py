"""Which clips there are: official annotation files and people's own lists become rows of one kind."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from .errors import BadManifest, UsageError

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "divx", "flv", "gif", "m2ts", "m4v", "mkv", "mov"),
        *("mp4", "mpeg", "mpg", "mts", "ogv", "rm", "ts", "vob", "webm", "wmv"),
    )
)
# The first of a numbered series of pictures: 00001.jpg, img_00000.jpg; of flow beside them its own.
_FIRST_PICTURE = re.compile(r".*?(?<![0-9])0*[01]\.jpe?g", re.IGNORECASE)
_ID = re.compile(r"[^\s/\\\x00-\x1f]+")  # it becomes part of a file's name
JOURNAL = "journal.sqlite"  # in the folder of every prepared set
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSpec:
    """One clip that somebody wants: what it is called, what it shows, and its file when that is known.

    ``start_s`` and ``end_s`` are moments of ``video``. ``event`` is the longer piece of it that holds the clip, where
    a data set knows such pieces, and ``event_s`` its moments of ``video``. ``cut_s`` is the part of ``source`` that is
    the clip; ``None``: all of it.
    """

    id: str
    video: str
    split: str
    label: str | None
    start_s: float | None = None
    end_s: float | None = None
    event: str = ""
    event_s: tuple[float, float] | None = None
    source: Path | None = None
    cut_s: tuple[float, float] | None = None


def kinetics_csv(path: Path, split: str, classes: Iterable[str]) -> list[ClipSpec]:
    """Rows of an official Kinetics list: ``label,youtube_id,time_start,time_end,split[,is_cc]``, test lists no label.

    The key of a clip is (video, start, end): some videos occur twice. The ``split`` column says nothing new, and files
    disagree on its spelling; only a row of another split is refused. ``classes`` empty: any name is taken.
    Raises ``BadManifest`` with file and line.
    """
    entries = []
    for line, row in _rows(path, ("youtube_id", "time_start", "time_end")):
        where = f"{path}:{line}"
        if SPLIT_NAMES.get(row.get("split", "").lower(), split) != split:
            raise BadManifest(f"{where}: a row of split {row['split']!r} in the list of {split!r}")
        entries.append((where, row["youtube_id"], row["time_start"], row["time_end"], row.get("label")))
    return _kinetics_clips(entries, split, classes)


def kinetics_json(path: Path, split: str, classes: Iterable[str]) -> list[ClipSpec]:
    """The same list as JSON: ``{id: {"annotations": {"label", "segment": [start, end]}, "subset"}}``.

    Also with a list of annotations for each id, below a key "database" (ActivityNet's form), or as a list of rows with
    the names of the CSV's columns. A file that holds all subsets gives the clips of ``split``.
    Raises ``BadManifest``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        table = content.get("database", content) if isinstance(content, dict) else content
        entries = []
        for where, video, subset, start, end, label in _json_rows(table):
            if SPLIT_NAMES.get(str(subset).lower(), split) == split:
                entries.append((f"{path}: {where}", video, str(start), str(end), label))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadManifest(f"{path} is no Kinetics list in JSON: {type(error).__name__}: {error}") from None
    return _kinetics_clips(entries, split, classes)


def _json_rows(table: Any) -> Iterator[tuple[str, str, Any, Any, Any, Any]]:
    if isinstance(table, list):
        for number, row in enumerate(table):
            yield (
                f"row {number}",
                row["youtube_id"],
                row.get("split", ""),
                row["time_start"],
                row["time_end"],
                row.get("label"),
            )
        return
    for video, entry in table.items():
        annotations = entry["annotations"]
        for one in annotations if isinstance(annotations, list) else [annotations]:
            start, end = one["segment"]
            yield video, video, entry.get("subset", ""), start, end, one.get("label")


def _kinetics_clips(
    entries: Iterable[tuple[str, str, str, str, str | None]], split: str, classes: Iterable[str]
) -> list[ClipSpec]:
    """Clips of (where, video, start, end, label), named as every published file is: by the whole seconds."""
    spelling = Spelling(classes)
    found: dict[tuple[str, float, float], ClipSpec] = {}
    for where, video, start_text, end_text, text in entries:
        label = spelling.find(text) if text else None
        if text and label is None:
            raise BadManifest(f"{where}: {text!r} is none of the {len(spelling)} classes of this data set")
        try:
            start, end = float(start_text), float(end_text)
            clip_id = f"{video}_{int(start):06d}_{int(end):06d}"
        except (ValueError, OverflowError):
            raise BadManifest(f"{where}: time_start and time_end must be seconds") from None
        if not _ID.fullmatch(video):
            raise BadManifest(f"{where}: {video!r} is no id of a video")
        spec = ClipSpec(id=clip_id, video=video, split=split, label=label, start_s=start, end_s=end)
        if found.setdefault((video, start, end), spec).label != label:
            raise BadManifest(f"{where}: {clip_id} stands here twice with different labels")
    times = Counter(spec.id for spec in found.values())
    return sorted(
        (
            # Two moments within one second: the name needs its fractions too.
            spec if times[spec.id] == 1 else replace(spec, id=f"{spec.video}_{spec.start_s:010.3f}_{spec.end_s:010.3f}")
            for spec in found.values()
        ),
        key=lambda spec: spec.id,
    )


def own_csv(path: Path, raw: Path, default_split: str) -> list[ClipSpec]:
    """Rows of ``path,label[,split]``, paths from ``raw`` or from the CSV's own folder; more columns do not matter.

    Raises ``BadManifest`` with file and line.
    """
    found: dict[Path, tuple[int, str | None, str]] = {}
    for line, row in _rows(path, ("path", "label")):
        if not row["path"]:
            raise BadManifest(f"{path}:{line}: the path is empty")
        entry = (_label(row["label"]), _split(row.get("split") or default_split, f"{path}:{line}"))
        source = raw / row["path"]
        if not source.exists() and (path.parent / row["path"]).exists():
            source = (path.parent / row["path"]).resolve()
        if source in found and found[source][1:] != entry:
            raise BadManifest(
                f"{path}:{line}: {row['path']} stood in line {found[source][0]} with another label or split"
            )
        found.setdefault(source, (line, *entry))
    if not found:
        raise BadManifest(f"{path} lists no video")
    return _with_ids([(source, label, split) for source, (_, label, split) in found.items()], raw)


def class_folders(raw: Path, default_split: str) -> tuple[list[ClipSpec], int]:
    """Videos below ``raw``, labelled by the folder they lie in; a folder named train, val or test sets the split.

    raw/archery/a.mp4 -> archery;  raw/val/archery/a.mp4 -> archery, split val;  raw/a.mp4 -> no label.
    A folder of numbered JPEG files is a video too: raw/archery/a/00001.jpg -> clip a, archery.
    Returns the clips and how many other files were passed over. Raises ``UsageError`` when there is no video at all.
    """
    entries: list[tuple[Path, str | None, str]] = []
    passed_over = 0
    files = sorted(files_below(raw))
    pictures = {path.parent for path in files if _FIRST_PICTURE.fullmatch(path.name)} - {raw}
    for path in sorted([*pictures, *files]):
        if path.parent in pictures:
            continue
        if path not in pictures and path.suffix.lower() not in VIDEO_SUFFIXES:
            passed_over += 1
            continue
        folders = path.relative_to(raw).parent.parts
        splits = [SPLIT_NAMES[part.lower()] for part in folders if part.lower() in SPLIT_NAMES]
        label = _label(folders[-1]) if folders and folders[-1].lower() not in SPLIT_NAMES else None
        entries.append((path, label, splits[-1] if splits else _split(default_split, "--split")))
    if not entries:
        raise UsageError(
            f"no video below {raw} (looked for {', '.join(sorted(VIDEO_SUFFIXES))}); "
            f"type --raw with the folder that holds them"
        )
    return _with_ids(entries, raw), passed_over


def files_below(raw: Path) -> Iterator[Path]:
    """Every file below ``raw``, through linked folders, none twice; in the same order on every machine.

    Links are followed last: a folder's own name is its label, whatever else points at it.
    Hidden files and folders (Apple's ``._*`` doubles too) do not count, nor do prepared sets: our files are no sources.
    Raises ``BadManifest`` for a name that is no text.
    """
    seen = set()
    tops = [raw]
    for folder, subfolders, names in chain.from_iterable(map(os.walk, tops)):
        real = os.path.realpath(folder)
        if real in seen or JOURNAL in names:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        tops += [link for name in subfolders if (link := Path(folder, name)).is_symlink()]  # grows while we walk
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            try:
                str(path).encode()
            except UnicodeEncodeError:
                raise BadManifest(
                    f"{os.fsencode(path)!r}: this name is not UTF-8; rename it, whole folders with: "
                    f"convmv -r -f latin1 -t utf8 --notest FOLDER"
                ) from None
            yield path


def safe_name(text: str) -> str:
    """A file or folder name for any text, as mmaction2 makes its class folders: spaces to underscores, quotes removed.

    Lists split on white space, so none may be in a path.
    """
    name = re.sub(r"[\s/\\]+", "_", re.sub(r"[\"\x00-\x08\x0e-\x1f]", "", text.strip()))
    return name if name.strip(".") else f"_{name}"


def bare_name(text: str) -> str:
    """A folder name for a class as torchvision.datasets.Kinetics makes it: no quotes, apostrophes and parentheses."""
    return re.sub(r"[\"'()]", "", text).replace(" ", "_")


class Spelling:
    """Finds a class by any published spelling: itself, in quotes, as our folder or torchvision's.

    Of no classes at all: every name on one line is as good as any.
    """

    def __init__(self, classes: Iterable[str]) -> None:
        names = list(classes)
        self._num_classes = len(names)
        self._ours: dict[str, str] = {}
        for way in (bare_name, safe_name, str):
            counts = Counter(map(way, names))
            self._ours |= {way(name): name for name in names if counts[way(name)] == 1}

    def __len__(self) -> int:
        return self._num_classes

    def find(self, text: str) -> str | None:
        if not self._num_classes:
            return _label(text)
        for spelled in (text, text.strip("\"' "), safe_name(text), bare_name(text)):
            if spelled in self._ours:
                return self._ours[spelled]
        return None


def stem(name: str) -> str:
    """A file's name without its video suffixes: ``id.mp4.mkv`` -> ``id``."""
    while True:
        head, dot, tail = name.rpartition(".")
        if not head or f"{dot}{tail}".lower() not in VIDEO_SUFFIXES:
            return name
        name = head


def _with_ids(entries: list[tuple[Path, str | None, str]], raw: Path) -> list[ClipSpec]:
    """Give every file the shortest name that no other one has: its stem, its name, or its whole path."""

    def whole_path(path: Path) -> str:
        return safe_name(str(path.relative_to(raw) if path.is_relative_to(raw) else path).replace("/", "__"))

    ways = [lambda path: safe_name(stem(path.name)), lambda path: safe_name(path.name), whole_path]
    ids = _unique(ways, [path for path, _, _ in entries])
    return sorted(
        (
            ClipSpec(id=ids[path], video=ids[path], split=split, label=label, source=path)
            for path, label, split in entries
        ),
        key=lambda spec: spec.id,
    )


def _unique(ways: Sequence[Callable[[Path], str]], paths: Sequence[Path]) -> dict[Path, str]:
    """Name each path in the first way that no other path left over shares."""
    ids: dict[Path, str] = {}
    left = list(paths)
    for way in ways:
        groups: dict[str, list[Path]] = defaultdict(list)
        for path in left:
            groups[way(path).casefold()].append(path)  # some disks do not tell A from a
        taken = {name.casefold() for name in ids.values()}
        ids |= {group[0]: way(group[0]) for name, group in groups.items() if len(group) == 1 and name not in taken}
        left = [path for path in left if path not in ids]
    if left:
        raise BadManifest(f"these files cannot be told apart by name: {', '.join(map(str, sorted(left)[:4]))}")
    return ids


def _rows(path: Path, needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV with their line numbers; everything is text, so that 00123 and NA stay what they are."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path} is not there") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise BadManifest(f"{path} is not a CSV in UTF-8: {error}") from None
    # strict: a quote that is never closed would swallow the rows below it
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        return _checked_rows(reader, path, needed)
    except csv.Error as error:
        raise BadManifest(f"{path}:{reader.line_num}: {error}; is a quotation mark not closed?") from None


def _checked_rows(reader: csv.DictReader[str], path: Path, needed: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    header = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    lacking = [name for name in needed if name not in header]
    if lacking:
        raise BadManifest(
            f"{path}: the first line must name the columns {','.join(needed)}; {','.join(lacking)} is not there"
        )
    rows = []
    for row in reader:
        if any(row[name] is None for name in needed):
            raise BadManifest(f"{path}:{reader.line_num}: fewer columns than the first line names")
        if any(row.get(None, [])):
            raise BadManifest(
                f"{path}:{reader.line_num}: more columns than the first line names; a name with a comma needs quotes"
            )
        rows.append((reader.line_num, {key: value.strip() for key, value in row.items() if isinstance(value, str)}))
    return rows


def _label(text: str) -> str | None:
    """A class name on one line: ``classes.txt`` holds one a line."""
    return " ".join(text.split()) or None


def _split(name: str, where: str) -> str:
    try:
        return SPLIT_NAMES[name.strip().lower()]
    except KeyError:
        raise BadManifest(
            f"{where}: split {name!r}; known are {', '.join(sorted(set(SPLIT_NAMES.values())))}"
        ) from None
