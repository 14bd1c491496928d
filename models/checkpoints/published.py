"""Files that others published: known by the first 8 digits of their hash, else by their name.

A hash says that it is that very file, and its number stands beside ours. A name says which network it is and how it is
tested; that is enough for a number only where its authors publish no hash.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import manifests
from datakit.errors import CheckpointError

from .. import zoo

log = logging.getLogger(__name__)
Row = dict[str, Any]
NUMBERS = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class", "map": "mAP"}


@functools.cache
def rows() -> tuple[Row, ...]:
    """The files of ``manifests/published.toml``; of each also its origin, sha8 ("" where none is known) and source."""
    found = []
    for program in manifests.read("published")["program"]:
        for line in program["files"]:
            row = {key: value for key, value in line.items() if key != "config"}
            digits = re.search(r"-([0-9a-f]{8})\.\w+$", line["file"])
            source = f"{program['source']}, {line.get('config', stem(line['file']))}"
            found.append(row | {"origin": program["origin"], "sha8": digits[1] if digits else "", "source": source})
    return tuple(found)


def of(origin: str) -> list[Row]:
    """Rows of a program, those of this version of it first: both mmaction2 0.x and 1.x list some of the same files."""
    program = origin.partition("-")[0]
    mine = [row for row in rows() if row["origin"].partition("-")[0] == program]
    return sorted(mine, key=lambda row: row["origin"] != origin)


def stem(file: str) -> str:
    """A published file name without date, hash and ending: what is left of it when somebody stripped them."""
    return re.sub(r"(_\d{8})?(-[0-9a-f]{8})?\.\w+$", "", file)


def with_digest(rows: Iterable[Row], digests: Sequence[str]) -> Row | None:
    return next((row for row in rows if row["sha8"] and row["sha8"] in digests), None)


def named(rows: Iterable[Row], text: str, num_classes: int) -> Row | None:
    """The row whose name stands in ``text``; of several the longest, and one that is there with its hash."""
    found = [row for row in rows if stem(row["file"]) in text and row.get("classes", num_classes) == num_classes]
    return max(found, key=lambda row: (len(stem(row["file"])), row["file"] == text), default=None)


def is_whole_name(row: Mapping[str, Any], file_name: str, origin: str) -> bool:
    """Whether a file of ``origin`` has the name of one that is published without a hash; its ending may be another."""
    return not row["sha8"] and row["origin"] == origin and stem(row["file"]) == stem(file_name)


def greet(path: Path, spec: zoo.ModelSpec, row: Mapping[str, Any], digests: Sequence[str]) -> None:
    """Say which published file this is, how it is tested and what its authors got."""
    said = f"{spec.name}, protocol {spec.protocol}: {numbers(row)} ({row['source']})"
    if spec.published:
        log.info("%s is the published %s: %s", path, row["file"], said)
    elif row["sha8"] and row["file"] == path.name:
        log.warning(
            "%s has the name of the published %s, %s; but its hash begins with %s: it is another file or damaged",
            *(path, row["file"], said, digests[0]),
        )
    else:
        log.info("%s is named like the published %s, %s", path, row["file"], said)


def numbers(row: Mapping[str, Any]) -> str:
    """``top-1 73.02, top-5 90.77 on Kinetics-400 (short-side 320)``; no numbers where the row has none."""
    each = ", ".join(f"{text} {row[key]:.2f}" for key, text in NUMBERS.items() if key in row) or "no number"
    return f"{each} on {row['dataset']}" + (f" ({row['copy']})" if "copy" in row else "")


def refuse_elsewhere(path: Path, origin: str, digests: Sequence[str]) -> None:
    """Raise ``CheckpointError`` for a published file whose network is not built here, by hash or by name."""
    others = [row for row in of(origin) if "network" not in row]
    row = with_digest(others, digests) or named(others, path.name, 0)
    if row:
        raise CheckpointError(
            f"{path}: the published {row['file']} ({numbers(row)}) is built on {row['backbone']}, which is not built "
            "here; models.list() has the networks that are"
        )
