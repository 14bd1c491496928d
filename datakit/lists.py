"""Manifest, lists and lock of a variant, written from the journal: what is there, what is not, and why.

lists/{split}_videos.txt      path label           mmaction2 (data prefix: the variant's folder)
lists/{split}_frames.txt      dir frames label     mmaction2 raw frames, with the decoded count
lists/{split}_flow.txt        dir flows label      mmaction2 flow: one field less than frames
lists/{split}_pyslowfast.csv  path label           PySlowFast (DATA.PATH_PREFIX: the variant's folder)
lists/classes.txt             one class name a line, in label order
lists/label_map.csv           index,name,order     the same with the name of the order
tree/{split}/{class}/         links                torchvision's class folders, when asked for

These programs split a line at white space. A path that holds some is reached through ``tree``, or its list is refused.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import av

from . import __version__, encode, files, fingerprint, labels, manifest
from .annotations import ClipSpec, bare_name, safe_name, stem
from .catalog import Dataset, Variant
from .errors import BadManifest, UsageError
from .journal import Journal, Outcome
from .layout import SOURCE_STAGE, final_path, key, stage_of
from .sources import reasons

TREE = "tree"


def write(
    set_dir: Path, variant: Variant, journal: Journal, dataset: Dataset | None, allow_damaged: float
) -> dict[str, int]:
    """Write everything that describes ``set_dir/variant``; returns how many clips have which status."""
    folder = set_dir / variant.name
    # Of a run that was killed; the journal's lock says that nobody else is writing here.
    specs = journal.clips()
    one_a_folder = {(spec.split, spec.label): spec for spec in specs}.values()
    places = {folder, folder / "lists"} | {folder / final_path(s, variant, dataset).parent for s in one_a_folder}
    encode.discard([stale for place in places for stale in place.glob("*.part")])
    classes, rows = table(set_dir, variant, journal, dataset, allow_damaged, specs)
    order, _ = labels.in_force(journal, dataset, specs)
    write_lists(folder, rows, classes, order)
    manifest.write(folder, rows, {**_lock(set_dir.name, variant, rows, allow_damaged), "label_order": order})
    return dict(Counter(row["status"] for row in rows))


def table(
    set_dir: Path,
    variant: Variant,
    journal: Journal,
    dataset: Dataset | None,
    allow_damaged: float,
    specs: Sequence[ClipSpec] | None = None,
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """(class names in label order, a manifest row for every clip asked for) as the journal and the disk are now.

    ``specs``: the journal's clips, where somebody has read them already.
    """
    specs = journal.clips() if specs is None else specs
    _, classes = labels.in_force(journal, dataset, specs)
    sources = journal.keys(SOURCE_STAGE)
    made = journal.outcomes(stage_of(variant.name))
    unfetched = reasons(journal)
    order = {label: number for number, label in enumerate(classes)}
    folder = set_dir / variant.name
    rows = [
        _row(
            spec,
            sources.get(spec.id),
            made.pop(spec.id, None),  # what is in a row already need not be here too: these are gigabytes
            unfetched.get(spec.id),
            variant,
            folder,
            final_path(spec, variant, dataset),
            order,
            allow_damaged,
        )
        for spec in specs
    ]
    return classes, rows


def _row(
    spec: ClipSpec,
    source_key: str | None,
    made: Outcome | None,
    unfetched: Outcome | None,
    variant: Variant,
    folder: Path,
    path: Path,
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
    if made is not None and made.key and (source_key is None or made.key != key(source_key, variant, spec)):
        made = None  # made from another source or by another definition of the variant
    if made is not None and made.status == "failed" and not (spec.source is not None and spec.source.exists()):
        made = None  # what was wrong with a file that is gone
    if made is None:
        if spec.source is not None and not spec.source.exists():
            return {**row, "status": "missing", "reason": f"{spec.source.name} is not there"}
        if spec.source is None and unfetched is not None:
            return {**row, "status": unfetched.error.lower(), "reason": unfetched.message}
        return {**row, "status": "pending"}  # not encoded yet, or no source was asked for it yet (--limit)
    row["source_sha256"] = source_key
    if made.status == "failed":
        return {**row, "status": made.error.lower(), "reason": made.message}
    row |= {"status": made.status, "reason": made.message or None}
    if not (folder / path).exists():
        if made.status == "ok":
            return {**row, "status": "lost", "reason": "the finished file is not there any more"}
        return row
    if made.status == "damaged" and made.data["share"] < allow_damaged:
        return row
    facts = {name: made.data[name] for name in FACTS}
    return {**row, **facts, "path": str(path)}


FACTS = ["frames", "fps", "width", "height", "duration_s", "keyframes", "bytes", "sha256", "content_sha256", "encoder"]


def write_lists(folder: Path, rows: Iterable[dict[str, Any]], classes: Sequence[str], order: str) -> None:
    """Every list of a variant and its label map. ``rows`` are the manifest's; clips without a file are left out."""
    rows = list(rows)
    for split in sorted({row["split"] for row in rows}):
        _write_split(folder, split, [row for row in rows if row["split"] == split and row["path"]])
    files.write_text(folder / "lists/classes.txt", "".join(f"{name}\n" for name in classes))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "name", "order"])
    writer.writerows((index, name, order) for index, name in enumerate(classes))
    files.write_text(folder / "lists/label_map.csv", text.getvalue())


def _write_split(folder: Path, split: str, rows: Sequence[dict[str, Any]]) -> None:
    paths = {row["id"]: _reachable(folder, row) for row in rows}
    counted = [row for row in rows if row["frames"]]
    made: dict[str, list[tuple[Any, ...]]] = {
        "frames.txt": [(stem(paths[row["id"]]), row["frames"], row["label_index"]) for row in counted],
        "flow.txt": [
            (stem(paths[row["id"]]), row["frames"] - 1, row["label_index"]) for row in counted if row["frames"] > 1
        ],
    }
    if not any(stem(path) == path for path in paths.values()):  # else these are folders of pictures
        made["videos.txt"] = [(paths[row["id"]], row["label_index"]) for row in rows]
        made["pyslowfast.csv"] = made["videos.txt"]
    spaced = [path for path in paths.values() if path.split() != [path]]
    for name in ("videos.txt", "frames.txt", "flow.txt", "pyslowfast.csv"):
        target = folder / "lists" / f"{split}_{name}"
        if spaced or name not in made:
            target.unlink(missing_ok=True)  # none is better than one of yesterday
        else:
            files.write_text(target, "".join(f"{' '.join(map(str, line))}\n" for line in made[name]))
    if spaced:
        print(
            f"note: {len(spaced)} paths of {folder} hold spaces, such as {spaced[0]!r}; mmaction2 and PySlowFast "
            f"cannot read those, so there are no lists of {split}. Links without spaces, and lists of them: "
            f"python -m datakit lists {folder.parent.name} --tree",
            file=sys.stderr,
        )


def _reachable(folder: Path, row: dict[str, Any]) -> str:
    """The path of a clip without white space, if there is one: its own, else its link in the tree."""
    path = str(row["path"])
    if path.split() == [path]:
        return path
    links = (_link(row, class_folder) for class_folder in (safe_name, bare_name))
    return next((str(link) for link in links if (folder / link).is_symlink()), path)


def _link(row: dict[str, Any], class_folder: Callable[[str], str]) -> Path:
    suffix = row["path"].removeprefix(stem(row["path"]))
    name = f"{safe_name(row['id'])}{suffix}"
    return Path(TREE, row["split"], *([class_folder(row["label"])] if row["label"] else []), name)


def write_tree(
    folder: Path,
    rows: Iterable[dict[str, Any]],
    classes: Sequence[str],
    class_folder: Callable[[str], str] = safe_name,
) -> int:
    """Make ``tree/{split}/{class}/``: a link for every clip that has a file and a label, whole or not at all.

    ``class_folder`` names the folder of a class (``labels.class_folder``). A class without clips gets its folder too:
    torchvision numbers folders, and one less would shift every number behind it. Returns the number of links.
    Raises ``BadManifest`` when two clips would get one name.
    """
    linked = [row for row in rows if row["path"] and row["label"]]
    names = Counter(_link(row, class_folder) for row in linked)
    if names and names.most_common(1)[0][1] > 1:
        raise BadManifest(f"{folder}: two clips would both be {names.most_common(1)[0][0]}; rename one of them")
    part, final = folder / f"tree.{uuid.uuid4().hex}.part", folder / TREE
    try:
        for split in {row["split"] for row in linked}:
            for name in classes:
                (part / split / class_folder(name)).mkdir(parents=True)
        for row in linked:
            link = part / _link(row, class_folder).relative_to(TREE)
            # tree/split/class/link -> the file, three folders up
            target = row["path"] if Path(row["path"]).is_absolute() else Path("../../..", row["path"])
            link.symlink_to(target)
        if final.is_symlink() or not _only_links(final):
            raise UsageError(f"{final} holds files that are no links of ours; move it away and type again")
        shutil.rmtree(final, ignore_errors=True)
        part.replace(final)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return len(linked)


def _only_links(folder: Path) -> bool:
    return all(Path(top, name).is_symlink() for top, _, names in os.walk(folder) for name in names)


def _lock(name: str, variant: Variant, rows: list[dict[str, Any]], allow_damaged: float) -> dict[str, Any]:
    return {
        **lock_of(name, variant.name, rows, allow_damaged),
        "variant_hash": variant.hash,
        "definition": variant.definition(),
    }


def lock_of(name: str, variant: str, rows: list[dict[str, Any]], allow_damaged: float) -> dict[str, Any]:
    """What a lock says of any variant: counts and fingerprints of its splits, and the tools."""
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
        "variant": variant,
        "allow_damaged": allow_damaged if allow_damaged <= 1 else None,
        "splits": splits,
        "encoders": sorted({row["encoder"] for row in rows if row.get("encoder")}),
        "tools": {"ffmpeg": encode.encoder_name(), "pyav": av.__version__, "actionkit": __version__},
    }
