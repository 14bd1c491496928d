"""The commands of python -m datakit, one module each, and what their command lines share.

A module has ``add(commands)``, which describes the command line and names the function that is called with it. Heavy
imports go into the functions, so that the help is quick.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TypeAlias

from ..errors import UsageError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

NOT_LET_IN = 2.0  # --allow-damaged: no share of frames reaches it


def command(commands: Commands, name: str, what: str, *, needs_name: bool = True) -> argparse.ArgumentParser:
    """A command with the options that all have."""
    sub = commands.add_parser(name, help=what, description=what)
    sub.add_argument(
        "name",
        metavar="NAME",
        nargs=None if needs_name else "?",
        help="the set: a data set we know (k400) or a name for your own videos",
    )
    sub.add_argument("--data-root", type=Path, default=Path("data"), help="where prepared sets live (default: data)")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return sub


def add_jobs(sub: argparse.ArgumentParser, what: str) -> None:
    sub.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help=what)


def add_cluster(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--cluster", metavar="ADDRESS", help="instead: all workers of a Dask scheduler (tcp://host:8786)")


def add_variants(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--variant", action="append", default=[], metavar="VARIANT", help="only this one (repeatable)")


def counted(statuses: dict[str, int]) -> str:
    order = sorted(statuses, key=lambda status: (status != "ok", status))
    return ", ".join(f"{statuses[status]} {status}" for status in order) or "nothing"


def set_name(name: str) -> str:
    if not name or name != Path(name).name or name.startswith("."):
        raise UsageError(f"{name!r} cannot name a set: it becomes a folder; type a plain name such as mine")
    return name


def set_dir(args: argparse.Namespace) -> Path:
    return Path(args.data_root.absolute() / set_name(args.name))


def prepared_variants(args: argparse.Namespace) -> list[str]:
    """The variants asked for, or all that were prepared."""
    folder = set_dir(args)
    there = sorted(path.parent.name for path in folder.glob("*/manifest.parquet"))
    if not there:
        raise UsageError(
            f"nothing was prepared in {folder}; type: python -m datakit prepare {args.name} --raw DIR --variant 256p"
        )
    asked = getattr(args, "variant", None) or there
    for name in asked:
        if name not in there:
            raise UsageError(f"{folder} has no variant {name}; type --variant with one of: {', '.join(there)}")
    return list(asked)


def root_option(args: argparse.Namespace) -> str:
    return "" if args.data_root == Path("data") else f" --data-root {shlex.quote(str(args.data_root))}"
