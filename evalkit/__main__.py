"""python -m evalkit: every command is a module of ``evalkit.commands``; almost all work from score files alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datakit import console

from .commands import compare, curve, fuse, plan, protocols, report, show, table, why

COMMANDS = (show, fuse, compare, why, curve, report, table, protocols, plan)  # in the order of the help


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m evalkit",
        description="Numbers from score files, as python -m evalkit.run writes them. "
        "A folder stands for the scores.npz in it.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    return int(args.main(args))


if __name__ == "__main__":
    console.run(main)
