"""python -m datakit: every command is a module of ``datakit.commands``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import console
from .commands import adopt, compare, doctor, fetch, flow, leakage, lists, prepare, show, status, verify

# In the order of the help.
COMMANDS = (prepare, adopt, fetch, flow, verify, lists, status, show, compare, leakage, doctor)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m datakit", description="Prepare, verify and list videos.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    return int(args.main(args))


if __name__ == "__main__":
    console.run(main)
