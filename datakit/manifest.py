"""A prepared set as a table: one row a clip that the list asks for, whatever became of it.

data/NAME/VARIANT/manifest.parquet   the table
data/NAME/VARIANT/manifest.lock      what it was made of, as JSON: list id, media id, variant, tools
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import files, fingerprint
from .annotations import safe_name, stem
from .errors import BadManifest, UsageError

_COLUMNS = {
    "id": "string",
    "label": "string",
    "label_index": "int32",
    "split": "string",
    "path": "string",
    "frames": "int32",
    "fps": "float64",
    "width": "int32",
    "height": "int32",
    "duration_s": "float64",
    "keyframes": "list<int32>",
    "bytes": "int64",
    "sha256": "string",
    "content_sha256": "string",
    "source": "string",
    "source_sha256": "string",
    "encoder": "string",
    "status": "string",
    "reason": "string",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One clip. ``path`` is where its file is, ``None`` when it has none; ``status`` and ``reason`` say why.

    ``frames`` is the decoded count, ``None`` when nobody vouches for it (a foreign list).
    ``label_index`` is the label's place in the set's classes, -1 without a label.
    """

    id: str
    label: str | None
    label_index: int
    split: str
    path: Path | None
    status: str = "ok"
    reason: str | None = None
    frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    keyframes: tuple[int, ...] = ()
    sha256: str | None = None
    content_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A set of clips with its classes in label order. ``variant`` is "foreign" for somebody else's list."""

    name: str
    variant: str
    classes: tuple[str, ...]
    clips: tuple[Clip, ...]

    def split(self, name: str) -> list[Clip]:
        """The clips of one split, in the order of their ids. Raises ``UsageError`` naming the splits there are."""
        chosen = [clip for clip in self.clips if clip.split == name]
        if not chosen:
            there = sorted({clip.split for clip in self.clips})
            raise UsageError(f"{self.name} has no clip in split {name!r}; type --split with one of: {', '.join(there)}")
        return chosen

    def list_id(self, clips: Iterable[Clip]) -> str:
        return fingerprint.list_id((clip.id, clip.label or "") for clip in clips)

    def media_id(self, clips: Iterable[Clip]) -> str:
        """Fingerprint of the files' bytes; "unverified" where nobody hashed them."""
        pairs = [(clip.id, clip.sha256) for clip in clips if clip.path is not None]
        if any(sha is None for _, sha in pairs):
            return "unverified"
        return fingerprint.media_id((id_, sha or "") for id_, sha in pairs)


def read(variant_dir: str | Path) -> Manifest:
    """The manifest of a prepared variant (``data/NAME/VARIANT``). Raises ``UsageError``, ``BadManifest``."""
    import pyarrow.parquet as pq

    folder = Path(variant_dir)
    table_file = folder / "manifest.parquet"
    if not table_file.is_file():
        raise UsageError(
            f"{table_file} is not there; "
            f"type: python -m datakit prepare NAME --raw DIR --variant {folder.name or 'VARIANT'}"
        )
    try:
        rows = pq.read_table(table_file).to_pylist()
        classes = tuple((folder / "lists" / "classes.txt").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise BadManifest(
            f"{folder} holds no whole manifest: {error}; type: python -m datakit lists {folder.parent.name}"
        ) from error
    clips = [
        Clip(
            id=row["id"],
            label=row["label"],
            label_index=row["label_index"],
            split=row["split"],
            path=folder / row["path"] if row["path"] else None,
            status=row["status"],
            reason=row["reason"],
            frames=row["frames"],
            fps=row["fps"],
            width=row["width"],
            height=row["height"],
            keyframes=tuple(row["keyframes"] or ()),
            sha256=row["sha256"],
            content_sha256=row["content_sha256"],
        )
        for row in rows
    ]
    return Manifest(
        name=folder.resolve().parent.name, variant=folder.resolve().name, classes=classes, clips=tuple(clips)
    )


def listed_paths(variant_dir: Path) -> set[str]:
    """The paths in a variant's manifest, as they stand there: without the rest, which is gigabytes of a large set."""
    import pyarrow.parquet as pq

    return set(pq.read_table(variant_dir / "manifest.parquet", columns=["path"])["path"].drop_null().to_pylist())


def is_flow(folder: Path) -> bool:
    """Whether a prepared variant holds optical flow; of what has no lock nobody knows, and it is taken for frames."""
    try:
        lock = json.loads((folder / "manifest.lock").read_text(encoding="utf-8"))
        return "flow_of" in lock["definition"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write(folder: Path, rows: Sequence[Mapping[str, Any]], lock: Mapping[str, Any]) -> None:
    """Write table and lock of a variant; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"list<int32>": pa.list_(pa.int32())}
    schema = pa.schema([(name, kinds.get(kind) or getattr(pa, kind)()) for name, kind in _COLUMNS.items()])
    table = pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in _COLUMNS}, schema=schema)
    with files.replacing(folder / "manifest.parquet") as part:
        pq.write_table(table, part, compression="zstd")
    files.write_text(folder / "manifest.lock", json.dumps(lock, indent=1, sort_keys=True) + "\n")


def from_list(list_file: str | Path, root: str | Path, classes: str | Path | None = None) -> Manifest:
    """Somebody else's copy, in place: a list of mmaction2, PySlowFast or GluonCV and the folder its paths start from.

    Lines are ``path label``, ``path,label``, ``path frames label`` or ``path anything label``; a path may hold spaces
    when the file it names is there. ``classes``: a file with one class name a line, in label order; without it a class
    is called by its number. A file that is not there becomes a clip with status "missing".
    Raises ``UsageError``, ``BadManifest`` with file and line.
    """
    list_path, folder = Path(list_file), Path(root)
    for needed in [list_path, folder, *([Path(classes)] if classes else [])]:
        if not needed.exists():
            raise UsageError(f"{needed} is not there; type --list FILE --root DIR [--classes FILE]")
    entries = [(entry.path, entry.label) for entry in list_entries(list_path, folder)]
    highest = max(label for _, label in entries)
    if classes:
        names = tuple(_lines(Path(classes)))
        if highest >= len(names):
            raise BadManifest(f"{list_path} has label {highest}, {classes} names only {len(names)} classes")
    else:
        names = tuple(str(number) for number in range(highest + 1))
    paths = [path for path, _ in entries]
    if len(set(paths)) < len(paths):
        raise BadManifest(f"{list_path} lists {next(path for path in paths if paths.count(path) > 1)} twice")
    clips = [
        Clip(
            id=id_,
            label=names[label] if label >= 0 else None,
            label_index=label,
            split=list_path.stem,
            path=folder / path if (folder / path).exists() else None,
            status="ok" if (folder / path).exists() else "missing",
            reason=None if (folder / path).exists() else f"{folder / path} is not there",
        )
        for id_, (path, label) in zip(ids_of(paths), entries, strict=True)
    ]
    clips.sort(key=lambda clip: clip.id)
    return Manifest(name=list_path.stem, variant="foreign", classes=names, clips=tuple(clips))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadManifest(
            f"{file} is no text in UTF-8 ({error.reason} at byte {error.start}); save it as such"
        ) from None


def ids_of(paths: Sequence[str]) -> list[str]:
    """The clip ids of somebody's list: file names without ending, or whole paths where two names are the same."""
    stems = [safe_name(stem(Path(path).name)) for path in paths]
    return stems if len(set(stems)) == len(stems) else [path.replace("/", "__") for path in paths]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListEntry:
    """One line of somebody's list: a path as it stands there, and the number of its class."""

    path: str
    label: int


def list_entries(list_file: Path, root: Path) -> list[ListEntry]:
    """The lines of somebody's list, as ``from_list`` says. Raises ``BadManifest`` with file and line."""
    entries = [
        _list_line(line.strip(), root, f"{list_file}:{number}")
        for number, line in enumerate(_lines(list_file), start=1)
        if line.strip()
    ]
    if not entries:
        raise BadManifest(f"{list_file} lists no video")
    return [ListEntry(path=path, label=label) for path, label in entries]


def _list_line(line: str, folder: Path, where: str) -> tuple[str, int]:
    separator = " " if " " in line or "\t" in line else ","
    words = line.replace("\t", " ").split(separator)
    words = [word for word in words if word]
    if len(words) < 2:
        raise BadManifest(f"{where}: 'path label' expected, found {line!r}")
    try:
        label = int(words[-1])
    except ValueError:
        raise BadManifest(f"{where}: the label must be a number, found {words[-1]!r}") from None
    for end in range(len(words) - 1, 0, -1):  # the longest path that exists: names with spaces stay whole
        path = separator.join(words[:end])
        if (folder / path).exists():
            return path, label
    counted = len(words) == 3 and stem(words[1]) == words[1]  # path frames label, not "a b.mp4 label"
    return (words[0], label) if counted else (separator.join(words[:-1]), label)
