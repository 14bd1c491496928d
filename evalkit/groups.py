"""Which clips were cut from one video: those are not independent, and are drawn together by intervals and tests."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import manifests
from datakit.errors import BadManifest, DataError, UsageError

from .scores import ScoreSet, some

COLUMNS = ("id", "video")
log = logging.getLogger(__name__)


def of(score_set: ScoreSet, asked: str = "auto") -> dict[str, str] | None:
    """Clip id -> source video, of the clips that a run was asked for; ``None`` where clips count as independent.

    asked  "auto"     as the manifest of the data set says (``source_video`` of manifests/datasets/SET.toml), which the
                      signature names as SET-SPLIT; ``None`` where it says nothing, or nothing of these ids
           "none"     clips
           a file     .csv or .parquet with the columns id and video
           a pattern  whose first group is the video: '(.+)_E_'
    Raises ``UsageError``, ``BadManifest``, ``DataError``: what was asked for does not say it of every clip.
    """
    ids = [*score_set.ids, *(str(entry["id"]) for entry in score_set.missing)]
    if asked == "none":
        return None
    if asked == "auto":
        pattern = pattern_of(score_set.signature.set)
        try:
            return by_pattern(ids, pattern) if pattern else None
        except DataError as error:
            log.warning("clips count as independent: %s", error)
            return None
    if asked.endswith((".csv", ".parquet")):
        table = read(Path(asked))
        return {clip_id: table[clip_id] for clip_id in known(ids, table)}
    try:
        num_groups = re.compile(asked).groups
    except re.error as error:
        raise UsageError(f"--groups {asked}: no pattern ({error}); type --groups '(.+)_E_'") from None
    if not num_groups:
        raise UsageError(
            f"--groups {asked}: auto, none, a .csv or .parquet with the columns id and video, or a pattern with the "
            "video in parentheses, such as '(.+)_E_'"
        )
    return by_pattern(ids, asked)


def of_all(score_sets: Iterable[ScoreSet], asked: str = "auto") -> dict[str, str] | None:
    """The same of the clips of several runs together; ``None`` as soon as it is of one of them."""
    found = [of(score_set, asked) for score_set in score_sets]
    together: dict[str, str] = {}
    for groups in found:
        if groups is None:
            return None
        together |= groups
    return together


def pattern_of(set_and_split: str) -> str:
    """What the manifest of a set says of the videos its clips are cut from; "" where it says nothing."""
    names = {part.rpartition("-")[0] for part in set_and_split.split("+")}
    if len(names) != 1 or not manifests.exists(f"datasets/{(name := names.pop())}"):
        return ""
    return str(manifests.read(f"datasets/{name}").get("source_video", ""))


def by_pattern(ids: Iterable[str], pattern: str) -> dict[str, str]:
    found = {clip_id: re.match(pattern, clip_id) for clip_id in ids}
    without = [clip_id for clip_id, match in found.items() if match is None]
    if without:
        raise DataError(f"{pattern} finds no source video in {len(without)} ids: {some(without)}")
    return {clip_id: match[1] for clip_id, match in found.items() if match}


def read(path: Path) -> dict[str, str]:
    """The columns id and video of a .csv with a header, or of a .parquet (a manifest of a prepared set is one)."""
    if not path.is_file():
        raise UsageError(f"--groups {path} is not there")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        columns = pq.read_schema(path).names
        rows = pq.read_table(path, columns=list(COLUMNS)).to_pylist() if set(COLUMNS) <= set(columns) else []
    else:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            columns = list(lines.fieldnames or [])
            rows = list(lines) if set(COLUMNS) <= set(columns) else []
    if not set(COLUMNS) <= set(columns):
        raise BadManifest(f"{path}: the columns id and video are needed, there are {', '.join(columns) or 'none'}")
    return {str(row["id"]): str(row["video"]) for row in rows}


def known(ids: Iterable[str], groups: Mapping[str, str] | None) -> list[str]:
    """``ids``, if ``groups`` names the video of each. Raises ``DataError``."""
    listed = list(ids)
    without = [clip_id for clip_id in listed if groups is not None and clip_id not in groups]
    if without:
        raise DataError(f"no source video is given for {len(without)} clips: {some(without)}")
    return listed


def units(ids: Sequence[str], groups: Mapping[str, str] | None) -> NDArray[np.int64] | None:
    """int64 [clips]: the number of each clip's video; ``None`` where clips are independent."""
    if groups is None:
        return None
    return np.unique([groups[clip_id] for clip_id in known(ids, groups)], return_inverse=True)[1].astype(np.int64)
