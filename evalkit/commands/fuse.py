"""python -m evalkit fuse: a weighted sum of several streams."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datakit import files
from datakit.errors import EXIT_DONE, UsageError

from . import Commands, add_foreign, add_groups, add_json, add_scores, document, print_scores
from .foreign import Foreign

if TYPE_CHECKING:
    from ..fuse import Search
    from ..scores import ScoreSet


def add(commands: Commands) -> None:
    fuse = commands.add_parser(
        "fuse",
        help="add the scores of several streams, joined by clip id",
        description="Add the scores of several streams, joined by clip id: score files of ours, results of mmaction2 "
        "(.pkl, .json) and of PySlowFast (with --list).",
    )
    add_scores(fuse)
    fuse.add_argument("--weights", metavar="W:W", help="one number a file, such as 1:1.5 (default: all 1)")
    fuse.add_argument("--on", choices=("prob", "logit"), default="prob", help="what is added (default: prob)")
    fuse.add_argument(
        "--search", type=Path, nargs="*", metavar="SCORES",
        help="choose the weights by top-1: by cross-validation, or on these score files of another split, one a stream",
    )  # fmt: skip
    fuse.add_argument(
        "--out", type=Path, metavar="OUT",
        help="fused.npz, or result.json as mmaction2 writes it, or a folder for scores.npz and metrics.json",
    )  # fmt: skip
    add_foreign(fuse)
    add_groups(fuse)
    add_json(fuse)
    fuse.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import groups
    from ..fuse import fuse, search, search_on, with_search

    if args.weights and args.search is not None:
        raise UsageError("--weights are your weights, --search chooses some; type one of them")
    check_out(args)
    foreign = Foreign(args.list, args.classes)
    parts = foreign.load_all(args.scores)
    weights: Sequence[float] | None = None if args.weights is None else _weights(args.weights)
    chosen: Search | None = None
    if args.search is not None:
        if args.search:
            chosen = search_on(Foreign([], args.classes).load_all(args.search), parts, args.on)
        else:
            chosen = search(parts, args.on, groups.of_all(parts, args.groups))
        weights = chosen.weights
    fused = fuse(parts, weights, args.on)
    if chosen is not None:
        fused = with_search(fused, chosen)
    written = write(fused, args, foreign)
    print_scores("evalkit-fuse", fused, args.groups, as_json=args.json, **({"out": str(args.out)} if written else {}))
    if written and not args.json:
        print(f"written     {', '.join(map(str, written))}")
    return EXIT_DONE


def check_out(args: argparse.Namespace) -> None:
    """Raise ``UsageError`` where the output would overwrite what is being fused, or a suffix says nothing."""
    from .. import scores

    if args.out is None:
        return
    if args.out.suffix not in ("", ".npz", ".json") and not args.out.is_dir():
        raise UsageError(f"--out {args.out}: type a name ending in .npz or .json, or a folder")
    for path in [*args.scores, *(args.search or [])]:
        file = path / scores.FILE_NAME if path.is_dir() else path
        if (target := out_file(args.out)).exists() and file.exists() and target.samefile(file):
            raise UsageError(f"--out {args.out} would overwrite {file}, which is being fused; type another --out")


def out_file(out: Path) -> Path:
    from .. import scores

    return out if out.suffix in (".npz", ".json") and not out.is_dir() else out / scores.FILE_NAME


def write(fused: ScoreSet, args: argparse.Namespace, foreign: Foreign) -> list[Path]:
    if args.out is None:
        return []
    file = out_file(args.out)
    if file.suffix == ".json":
        from .. import interop

        interop.write_json(fused, file, foreign.order)
        return [file]
    fused.save(file)
    if file == args.out:
        return [file]
    numbers = args.out / "metrics.json"
    text: dict[str, Any] = document(fused, args.groups)
    files.write_text(numbers, json.dumps(text, indent=1, allow_nan=False) + "\n")
    return [file, numbers]


def _weights(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(":")]
    except ValueError:
        raise UsageError(f"--weights {text}: numbers with colons between them; type --weights 1:1.5") from None
    if not all(map(math.isfinite, found)):
        raise UsageError(f"--weights {text}: finite numbers; type --weights 1:1.5")
    return found
