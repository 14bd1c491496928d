"""The commands of python -m evalkit, one module each, and what their command lines share.

A module has ``add(commands)``, which describes the command line and names the function that is called with it. Heavy
imports go into the functions, so that the help is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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


def add_foreign(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--list", "--csv", type=Path, action="append", default=[], metavar="FILE",
        help="of other programs' results: the list (or PySlowFast's csv) that was tested, 'path label' a line; one for "
        "all, or one for each in order",
    )  # fmt: skip
    sub.add_argument("--classes", type=Path, metavar="FILE", help="their class names, one a line in label order")


def add_across_copies(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--across-copies", action="store_true", help="compare although the files were not the same")


def add_groups(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--groups", default="auto", metavar="VIDEOS",
        help="which clips are of one video and drawn together: auto (what is known of the data set), none, a .csv or "
        ".parquet with the columns id and video, or a pattern with the video in parentheses (default: auto)",
    )  # fmt: skip


def document(score_set: ScoreSet, groups: str) -> dict[str, Any]:
    """What ``metrics.json`` holds, with remarks, and of a fusion its parts."""
    from .. import metrics, published, remarks

    found = metrics.document(score_set, *metrics.rules(score_set), groups)
    beside = [one.to_dict() for one in published.beside(score_set)]
    return {**found, "remarks": remarks.of(score_set), "beside": beside, **_parts(score_set)}


def print_scores(kind: str, score_set: ScoreSet, groups: str, *, as_json: bool, **more: Any) -> None:
    """The numbers of a score set on stdout."""
    from .. import groups as source_videos
    from .. import metrics, published, remarks

    if as_json:
        console.print_json(kind, {**document(score_set, groups), **more})
        return
    rules, videos = metrics.rules(score_set), source_videos.of(score_set, groups)
    summary = metrics.summary(score_set, *rules, videos)
    print(metrics.describe(summary, score_set.signature, metrics.intervals(score_set, *rules, videos)))
    for line in [*published.lines(score_set), *remarks.lines(score_set)]:
        print(line)
    for part in _parts(score_set).get("fused", []):
        print(f"part        {part['weight']:g} x {part['signature']}")
    if "search" in score_set.meta:
        print("\n".join(_searched(score_set.meta["search"])))
    for entry in score_set.missing[:SHOWN]:
        print(f"missing     {entry['id']}: {entry['reason']}")
    if len(score_set.missing) > SHOWN:
        print(f"missing     and {len(score_set.missing) - SHOWN} more; --json lists them all")


def _parts(score_set: ScoreSet) -> dict[str, Any]:
    return {key: score_set.meta[key] for key in ("fused", "search") if key in score_set.meta}


def _searched(found: dict[str, Any]) -> list[str]:
    """What must stand beside the numbers of a fusion whose weights were searched."""
    ratio = _ratio(found["weights"])
    equal = f"equal weights {100 * found['equal']:.2f}"
    if found["chosen_on"]:
        return [
            f"searched    {ratio} of {found['num_mixtures']} mixtures, chosen on {found['chosen_on']} "
            f"(there {100 * found['optimistic']:.2f}, {equal})"
        ]
    folds = sorted(map(tuple, found["chosen_a_fold"]))
    return [
        f"searched    {ratio} of {found['num_mixtures']} mixtures, chosen on the clips that are counted above: the "
        f"numbers above are optimistic",
        f"cross-val.  {100 * found['cross_validated']:.2f} top-1 cross-validated: {len(folds)} folds of "
        f"{found['unit']}s, each with weights chosen on the others ({_ratio(folds[0])} to {_ratio(folds[-1])})",
        f"optimistic  {100 * found['optimistic']:.2f} top-1 with the weights chosen on the same clips; {equal}",
    ]


def _ratio(weights: Sequence[float]) -> str:
    return ":".join(f"{weight:g}" for weight in weights)
