"""Manifest, frame lists and lock of a variant, written from the journal: what is there, what is not, and why.

lists/{split}_videos.txt      path label           mmaction2 (data prefix: the variant's folder)
lists/{split}_frames.txt      dir frames label     mmaction2 raw frames, with the decoded count
lists/{split}_pyslowfast.csv  path label           PySlowFast (DATA.PATH_PREFIX: the variant's folder)
lists/classes.txt             one class name a line, in label order
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import av

from . import __version__, encode, files, fingerprint, manifest
from .annotations import ClipSpec
from .catalog import Dataset, Variant
from .journal import Journal, Outcome
from .layout import SOURCE_STAGE, final_path, key, stage_of


def write(
    set_dir: Path, variant: Variant, journal: Journal, dataset: Dataset | None, allow_damaged: float
) -> dict[str, int]:
    """Write everything that describes ``set_dir/variant``; returns how many clips have which status."""
    folder = set_dir / variant.name
    for stale in folder.rglob("*.part"):
        stale.unlink()  # of a run that was killed; the journal's lock says that nobody else is writing here
    classes, rows = table(set_dir, variant, journal, dataset, allow_damaged)
    listed = [row for row in rows if row["path"]]
    for split in sorted({row["split"] for row in rows}):
        _write_lists(folder / "lists", split, [row for row in listed if row["split"] == split])
    files.write_text(folder / "lists" / "classes.txt", "".join(f"{name}\n" for name in classes))
    manifest.write(folder, rows, _lock(set_dir.name, variant, rows, allow_damaged))
    return dict(Counter(row["status"] for row in rows))


def table(
    set_dir: Path, variant: Variant, journal: Journal, dataset: Dataset | None, allow_damaged: float
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """(class names in label order, a manifest row for every clip asked for) as the journal and the disk are now."""
    specs = journal.clips()
    classes = dataset.classes if dataset else tuple(sorted({spec.label for spec in specs if spec.label}))
    sources = journal.outcomes(SOURCE_STAGE)
    made = journal.outcomes(stage_of(variant.name))
    order = {label: number for number, label in enumerate(classes)}
    folder = set_dir / variant.name
    rows = [
        _row(spec, sources.get(spec.id), made.get(spec.id), variant, folder, order, allow_damaged) for spec in specs
    ]
    return classes, rows


def _row(
    spec: ClipSpec,
    source: Outcome | None,
    made: Outcome | None,
    variant: Variant,
    folder: Path,
    order: dict[str, int],
    allow_damaged: float,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": spec.id,
        "label": spec.label,
        "label_index": order[spec.label] if spec.label else -1,
        "split": spec.split,
        "path": None,
        "source": spec.source.name if spec.source else None,
        "reason": None,
    }
    path = final_path(spec)
    if made is not None and made.key and (source is None or made.key != key(source.key, variant)):
        made = None  # made from another source or by another definition of the variant
    if made is None:
        if spec.source is not None and spec.source.is_file():
            return {**row, "status": "pending"}
        return {
            **row,
            "status": "missing",
            "reason": f"{spec.source.name} is not there" if spec.source else "no file of that name",
        }
    row["source_sha256"] = source.key if source else None
    if made.status == "failed":
        return {**row, "status": made.error.lower(), "reason": made.message}
    row |= {"status": made.status, "reason": made.message or None}
    if not (folder / path).is_file():
        if made.status == "ok":
            return {**row, "status": "lost", "reason": "the finished file is not there any more"}
        return row
    if made.status == "damaged" and made.data["share"] < allow_damaged:
        return row
    facts = {name: made.data[name] for name in _FACTS}
    return {**row, **facts, "path": str(path)}


_FACTS = ["frames", "fps", "width", "height", "duration_s", "keyframes", "bytes", "sha256", "content_sha256", "encoder"]


def _write_lists(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    videos = [f"{row['path']} {row['label_index']}\n" for row in rows]
    frames = [f"{row['path'].removesuffix('.mp4')} {row['frames']} {row['label_index']}\n" for row in rows]
    files.write_text(folder / f"{split}_videos.txt", "".join(videos))
    files.write_text(folder / f"{split}_frames.txt", "".join(frames))
    files.write_text(folder / f"{split}_pyslowfast.csv", "".join(videos))


def _lock(name: str, variant: Variant, rows: list[dict[str, Any]], allow_damaged: float) -> dict[str, Any]:
    splits = {}
    for split in sorted({row["split"] for row in rows}):
        asked = [row for row in rows if row["split"] == split]
        listed = [row for row in asked if row["path"]]
        splits[split] = {
            "asked": len(asked),
            "listed": len(listed),
            "status": dict(sorted(Counter(row["status"] for row in asked).items())),
            "list_id": fingerprint.list_id((row["id"], row["label"] or "") for row in listed),
            "media_id": fingerprint.media_id((row["id"], row["sha256"]) for row in listed),
            "content_id": fingerprint.media_id((row["id"], row["content_sha256"]) for row in listed),
        }
    return {
        "schema": "actionkit-lock/1",
        "set": name,
        "variant": variant.name,
        "variant_hash": variant.hash,
        "definition": variant.definition(),
        "allow_damaged": allow_damaged if allow_damaged <= 1 else None,
        "splits": splits,
        "encoders": sorted({row["encoder"] for row in rows if row.get("encoder")}),
        "tools": {"ffmpeg": encode.encoder_name(), "pyav": av.__version__, "actionkit": __version__},
    }
