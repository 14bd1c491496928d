"""python -m evalkit protocols: the protocols there are."""

from __future__ import annotations

import argparse

from datakit import console
from datakit.errors import EXIT_DONE

from . import Commands, add_json


def add(commands: Commands) -> None:
    protocols = commands.add_parser("protocols", help="the protocols there are")
    add_json(protocols)
    protocols.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from .. import protocols

    rows = [protocols.get(name, mode) for name in protocols.names() for mode in protocols.modes(name)]
    if args.json:
        console.print_json("evalkit-protocols", {"protocols": [{**asdict(row), "views": row.views} for row in rows]})
        return EXIT_DONE
    table = [("protocol", "mode", "version", "views", "resize", "frames", "scores")]
    for row in rows:
        size = str(row.short_side_px) if row.resize_px is None else "x".join(map(str, row.resize_px))
        options = "".join(f" {name}={value}" for name, value in row.options.items())
        table.append((row.name, row.mode, str(row.version), row.views, size, row.sampling + options, row.aggregation))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return EXIT_DONE
