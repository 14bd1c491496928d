"""python -m evalkit protocols: the protocols there are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from datakit import console
from datakit.errors import EXIT_DONE

from . import Commands, add_json

if TYPE_CHECKING:
    from ..protocols import Protocol

TITLES = ("protocol", "mode", "version", "views", "resize", "frames", "scores")


def add(commands: Commands) -> None:
    protocols = commands.add_parser("protocols", help="the protocols there are")
    add_json(protocols)
    protocols.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from .. import protocols

    rows = protocols.everything()
    if args.json:
        found = [{**asdict(row), "views": row.views, **about} for row, about in rows]
        console.print_json("evalkit-protocols", {"protocols": found})
        return EXIT_DONE
    table = [TITLES, *(cells(row) for row, _ in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return EXIT_DONE


def cells(row: Protocol) -> tuple[str, ...]:
    """A protocol as a line of the table under ``TITLES``."""
    size = str(row.short_side_px) if row.resize_px is None else "x".join(map(str, row.resize_px))
    options = "".join(f" {name}={value}" for name, value in row.options.items())
    return (row.name, row.mode, str(row.version), row.views, size, row.sampling + options, row.aggregation)
