"""python -m evalkit why: what the difference of two results is made of."""

from __future__ import annotations

import argparse
from pathlib import Path

from datakit import console
from datakit.errors import EXIT_DONE

from . import Commands, add_groups, add_json


def add(commands: Commands) -> None:
    why = commands.add_parser("why", help="take the difference of two results apart, one factor at a time")
    why.add_argument("a", type=Path, metavar="A", help="scores")
    why.add_argument("b", type=Path, metavar="B", help="scores")
    why.add_argument("--metric", choices=("top1", "mean_class"), default="top1", help="(default: top1)")
    add_groups(why)
    add_json(why)
    why.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import groups, scores, why

    sides = [scores.load(path) for path in (args.a, args.b)]
    found = why.why(
        *sides,
        names=(str(args.a), str(args.b)),
        metric=args.metric,
        groups=groups.of_all(sides, args.groups),
    )
    if args.json:
        console.print_json("evalkit-why", found.to_dict())
    else:
        print(why.describe(found))
    return EXIT_DONE
