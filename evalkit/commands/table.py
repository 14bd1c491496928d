"""python -m evalkit table: results as model zoos list them, published ones beside ours."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from datakit import console, files
from datakit.errors import EXIT_DONE, UsageError

from . import Commands, add_json, add_scores
from .curve import macs_of_network, macs_per_view


def add(commands: Commands) -> None:
    table = commands.add_parser("table", help="a table of results, published ones beside ours: Markdown, CSV, LaTeX")
    add_scores(table)
    table.add_argument(
        "--out", type=Path, metavar="FILE", help="FILE.md, FILE.csv or FILE.tex (default: Markdown here)"
    )
    add_json(table)
    table.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import table

    suffix = ".md" if args.out is None else args.out.suffix.lower()
    if suffix not in table.FORMATS:
        raise UsageError(f"--out {args.out}: type a name that ends with {', '.join(table.FORMATS)}")
    runs = [replace(run, macs_per_view=macs_per_view(run.scores)) for run in table.load(args.scores)]
    rows = table.rows(runs, macs_of_network)
    if args.out is not None:
        files.write_text(args.out, table.FORMATS[suffix](rows))
    if args.json:
        out = None if args.out is None else str(args.out)
        console.print_json("evalkit-table", {"rows": [asdict(row) for row in rows], "out": out})
    else:
        print(args.out if args.out is not None else table.markdown(rows), end="\n" if args.out is not None else "")
    return EXIT_DONE
