"""python -m evalkit report: one HTML page about several results."""

from __future__ import annotations

import argparse
from pathlib import Path

from datakit.errors import EXIT_DONE, UsageError

from . import Commands, add_across_copies, add_groups, add_scores
from .curve import macs_per_view


def add(commands: Commands) -> None:
    report = commands.add_parser("report", help="one HTML page about several results")
    add_scores(report)
    report.add_argument("--out", type=Path, default=Path("report.html"), help="(default: report.html)")
    report.add_argument(
        "--videos", type=Path, metavar="DIR",
        help="make pictures of the worst clips from the videos here (default: the prepared set that was scored, if it "
        "is below --data-root)",
    )  # fmt: skip
    report.add_argument("--data-root", type=Path, default=Path("data"), metavar="DIR", help="(default: data)")
    add_across_copies(report)
    add_groups(report)
    report.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import report

    if args.videos is not None and not args.videos.is_dir():
        raise UsageError(f"--videos {args.videos} is no folder")
    out = report.write(
        args.scores,
        args.out,
        across_copies=args.across_copies,
        groups=args.groups,
        videos=args.videos,
        data_root=args.data_root,
        macs=macs_per_view,
    )
    print(out)
    return EXIT_DONE
