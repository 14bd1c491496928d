"""The commands of python -m evalkit, one module each, and what their command lines share.

A module has ``add(commands)``, which describes the command line and names the function that is called with it. Heavy
imports go into the functions, so that the help is quick.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from datakit import console

if TYPE_CHECKING:
    from ..scores import ScoreSet

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

SHOWN = 10  # missing clips


def add_scores(sub: argparse.ArgumentParser, *, several: bool = True) -> None:
    sub.add_argument("scores", type=Path, nargs="+" if several else None, metavar="SCORES")


def add_json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")


def add_across_copies(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--across-copies", action="store_true", help="compare although the files were not the same")


def add_groups(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--groups", default="auto", metavar="VIDEOS",
        help="which clips are of one video and drawn together: auto (what is known of the data set), none, a .csv or "
        ".parquet with the columns id and video, or a pattern with the video in parentheses (default: auto)",
    )  # fmt: skip


def document(score_set: ScoreSet, groups: str) -> dict[str, Any]:
    """What ``metrics.json`` holds, and of a fusion its parts."""
    from .. import metrics

    return {**metrics.document(score_set, *metrics.rules(score_set), groups), **_parts(score_set)}


def print_scores(kind: str, score_set: ScoreSet, groups: str, *, as_json: bool, **more: Any) -> None:
    """The numbers of a score set on stdout."""
    from .. import groups as source_videos
    from .. import metrics

    if as_json:
        console.print_json(kind, {**document(score_set, groups), **more})
        return
    rules, videos = metrics.rules(score_set), source_videos.of(score_set, groups)
    summary = metrics.summary(score_set, *rules, videos)
    print(metrics.describe(summary, score_set.signature, metrics.intervals(score_set, *rules, videos)))
    for part in _parts(score_set).get("fused", []):
        print(f"part        {part['weight']:g} x {part['signature']}")
    for entry in score_set.missing[:SHOWN]:
        print(f"missing     {entry['id']}: {entry['reason']}")
    if len(score_set.missing) > SHOWN:
        print(f"missing     and {len(score_set.missing) - SHOWN} more; --json lists them all")


def _parts(score_set: ScoreSet) -> dict[str, Any]:
    return {"fused": score_set.meta["fused"]} if "fused" in score_set.meta else {}
