"""Put a published copy of a data set into manifests/copies/, as one bit a clip of the official list.

    python scripts/copies.py k400 val --official val.csv --copy pyslowfast vallist.txt \\
        --title PySlowFast --source "facebookresearch/video-nonlocal-net process_data/kinetics/vallist.txt"
    python scripts/copies.py k400 val --count gluoncv 19404 --title GluonCV --source "dmlc/gluon-cv#1578"

A list has one clip a line, a path or an id first; files may be packed with xz. The official list is a Kinetics CSV
(``youtube_id,time_start,time_end``) or a list as well. ``--key video`` compares videos, for lists without times.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from datakit import files, fingerprint  # noqa: E402
from datakit.copies import ids_in  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set_name")
    parser.add_argument("split")
    parser.add_argument("--official", type=Path, help="official annotation file; needed for --copy")
    parser.add_argument("--key", choices=("video", "clip"), default="clip")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--copy", nargs=2, metavar=("NAME", "LIST"))
    what.add_argument("--count", nargs=2, metavar=("NAME", "CLIPS"), help="where only the count was published")
    parser.add_argument("--num-official", type=int, help="with --count, without --official")
    parser.add_argument("--title", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--note", default="")
    args = parser.parse_args()

    target = CHECKOUT / "manifests" / "copies" / f"{args.set_name}-{args.split}.toml"
    table: dict[str, Any] = tomllib.loads(target.read_text()) if target.is_file() else {"key": args.key, "copies": {}}
    if args.official:
        keys = {key(one, table["key"]) for one in ids_in(args.official)}
        ordered = fingerprint.keys_in_order(keys)
        table |= {"num_ids": len(keys), "sha256": fingerprint.keys_sha256(keys)}
    elif args.num_official:
        table["num_ids"] = args.num_official
    entry = {"title": args.title, "source": args.source, **({"note": args.note} if args.note else {})}
    if args.copy:
        name, listed = args.copy
        there = {key(one, table["key"]) for one in ids_in(Path(listed))}
        if strangers := there - keys:
            sys.exit(f"{listed}: {len(strangers)} ids are not on the official list, such as {sorted(strangers)[0]}")
        lacking = [place for place, one in enumerate(ordered) if one not in there]
        table["hashes"] = fingerprint.packed_hashes(ordered)
        entry |= {"num_ids": len(there), "lacking": fingerprint.bits_of(lacking, len(ordered))}
    else:
        name, count = args.count
        entry |= {"num_ids": int(count)}
    table["copies"][name] = entry
    files.write_text(target, toml(table))
    print(f"{target.relative_to(CHECKOUT)}: {name}, {entry['num_ids']} of {table['num_ids']}")


def key(clip_id: str, kind: str) -> str:
    return fingerprint.video_of(clip_id) if kind == "video" else clip_id


def toml(table: dict[str, Any]) -> str:
    lines = [
        "# Written by scripts/copies.py: what published copies lack of the official list (datakit/fingerprint.py)."
    ]
    lines += [line(name, table[name]) for name in ("key", "num_ids", "sha256", "hashes") if name in table]
    for name, entry in sorted(table["copies"].items()):
        lines += ["", f"[copies.{name}]", *(line(field, value) for field, value in entry.items())]
    return "\n".join(lines) + "\n"


def line(name: str, value: str | int) -> str:
    if name in ("hashes", "lacking"):
        packed = "".join(str(value).split())
        rows = [packed[start : start + 118] for start in range(0, len(packed), 118)]
        return f'{name} = """\n' + "\n".join(rows) + '"""'
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"


if __name__ == "__main__":
    main()
