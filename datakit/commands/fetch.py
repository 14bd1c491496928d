"""python -m datakit fetch"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .. import console
from ..errors import EXIT_DONE, EXIT_SOME_FAILED, UsageError
from . import NOT_LET_IN, Commands, add_jobs, command, counted, set_name

if TYPE_CHECKING:
    from ..sources import Options


def add(commands: Commands) -> None:
    fetch = command(commands, "fetch", "have the videos of a data set here, without encoding them; run again to go on")
    fetch.add_argument("--raw", type=Path, metavar="DIR", help="a folder that holds some of the videos")
    fetch.add_argument("--annotations", type=Path, metavar="FILE|DIR", help="official list of the data set")
    fetch.add_argument("--split", action="append", default=[], metavar="SPLIT", help="only this split (repeatable)")
    fetch.add_argument("--limit", type=int, metavar="N", help="fetch at most about N clips this time, for a trial")
    add_jobs(fetch, "downloads at once (2 to 8)")
    add_options(fetch)
    fetch.set_defaults(main=main)


def add_options(sub: argparse.ArgumentParser) -> None:
    """What all commands that fetch can be told about it."""
    sub.add_argument(
        "--source", default="", metavar="A,B", help="cvdf, youtube, archive, local: each fills what is lacking"
    )
    sub.add_argument("--mirror", default="", metavar="URL", help="ask this server instead of the official ones")
    sub.add_argument(
        "--keep-archives", action=argparse.BooleanOptionalAction, default=True, help="keep what was unpacked"
    )
    sub.add_argument("--retry-gone", action="store_true", help="ask again for what was gone")
    sub.add_argument("--cookies", type=Path, metavar="FILE", help="of a browser that is logged in, for youtube")
    sub.add_argument("--proxy", default="", metavar="URL", help="for youtube")
    sub.add_argument("--sleep", type=float, metavar="S", help="seconds between two videos of youtube")
    sub.add_argument("--yes", action="store_true", help="do not ask before a long fetch")


def options(args: argparse.Namespace) -> Options:
    from ..fetch import SOURCES
    from ..sources import Options

    names = tuple(dict.fromkeys(name.strip() for name in args.source.split(",") if name.strip()))
    for name in names:
        if name not in SOURCES:
            raise UsageError(f"no source {name!r}; type --source with some of: {', '.join(SOURCES)}")
    if args.cookies is not None and not args.cookies.is_file():
        raise UsageError(f"{args.cookies} is not there; type --cookies with a file in the format of cookies.txt")
    if args.mirror and urlsplit(args.mirror).scheme not in ("http", "https"):
        raise UsageError(f"--mirror {args.mirror}: type an address that begins with http or https")
    return Options(
        names=names,
        mirror=args.mirror,
        keep_archives=args.keep_archives,
        retry_gone=args.retry_gone,
        cookies=args.cookies and args.cookies.absolute(),
        proxy=args.proxy,
        sleep_s=args.sleep,
        yes=args.yes,
    )


def main(args: argparse.Namespace) -> int:
    from ..prepare import Request, fetch_only

    for value, name in ((args.jobs, "--jobs"), (args.limit, "--limit")):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: type a number of at least 1")
    request = Request(
        name=set_name(args.name),
        data_root=args.data_root.absolute(),
        raw=args.raw,
        labels=None,
        annotations=args.annotations,
        splits=tuple(args.split),
        variants=(),
        num_jobs=args.jobs,
        limit=args.limit,
        allow_damaged=NOT_LET_IN,
        retry_failed=False,
        fetching=options(args),
    )
    statuses = fetch_only(request)
    if args.json:
        console.print_json("datakit-fetch", {"set": request.name, "clips": statuses})
    else:
        print(f"{request.name}: {counted(statuses)}")
    return EXIT_SOME_FAILED if set(statuses) - {"ok", "pending"} else EXIT_DONE
