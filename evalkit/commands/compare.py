"""python -m evalkit compare: do runs differ, by more than chance, and in what."""

from __future__ import annotations

import argparse

from datakit import console
from datakit.errors import EXIT_DONE

from . import Commands, add_across_copies, add_groups, add_json, add_scores


def add(commands: Commands) -> None:
    compare = commands.add_parser("compare", help="do they differ by more than chance, and what was done differently")
    add_scores(compare)
    compare.add_argument("--metric", choices=("top1", "mean_class"), default="top1", help="(default: top1)")
    compare.add_argument("--common", action="store_true", help="compare on the clips that both scored")
    add_across_copies(compare)
    add_groups(compare)
    add_json(compare)
    compare.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import compare, groups, remarks, scores

    score_sets = [scores.load(path, views=False) for path in args.scores]
    found = compare.compare_all(
        score_sets,
        [str(path) for path in args.scores],
        metric=args.metric,
        common=args.common,
        across_copies=args.across_copies,
        groups=groups.of_all(score_sets, args.groups),
    )
    if args.json:
        runs = [
            {"name": str(path), "signature": str(one.signature), "remarks": remarks.of(one)}
            for path, one in zip(args.scores, score_sets, strict=True)
        ]
        console.print_json(
            "evalkit-compare", {"comparisons": [comparison.to_dict() for comparison in found], "runs": runs}
        )
        return EXIT_DONE
    print("\n\n".join(compare.describe(comparison) for comparison in found))
    for path, one in zip(args.scores, score_sets, strict=True):
        print("\n".join(["", str(path), f"signature   {one.signature}", *remarks.lines(one)]))
    return EXIT_DONE
