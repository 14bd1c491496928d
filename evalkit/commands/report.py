"""python -m evalkit report: one HTML page about several results."""

from __future__ import annotations

import argparse
from pathlib import Path

from datakit.errors import EXIT_DONE

from . import Commands, add_across_copies, add_scores


def add(commands: Commands) -> None:
    report = commands.add_parser("report", help="one HTML page about several results")
    add_scores(report)
    report.add_argument("--out", type=Path, default=Path("report.html"), help="(default: report.html)")
    add_across_copies(report)
    report.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import report

    print(report.write(args.scores, args.out, across_copies=args.across_copies))
    return EXIT_DONE
