"""python -m datakit show"""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import console
from ..errors import EXIT_DONE, UsageError
from . import Commands


def add(commands: Commands) -> None:
    what = "one picture of a clip: the same instants in each variant, and its flow in colours"
    show = commands.add_parser("show", help=what, description=what)
    show.add_argument("clip", metavar="CLIP", help="a file or folder, a prepared clip's id, or NAME/ID")
    show.add_argument("--data-root", type=Path, default=Path("data"), help="where prepared sets live (default: data)")
    show.add_argument("--out", type=Path, metavar="FILE", help="the PNG file (default: CLIP.png in this folder)")
    show.add_argument("--instants", type=int, default=6, metavar="N", help="pictures in a row (default: 6)")
    show.add_argument("--json", action="store_true", help="one JSON object on stdout")
    show.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from ..show import show

    if args.instants < 1:
        raise UsageError(f"--instants {args.instants}: type a number of at least 1")
    path = show(args.clip, args.data_root, args.out, args.instants)
    if args.json:
        console.print_json("datakit-show", {"clip": args.clip, "file": str(path)})
    else:
        print(path)
    return EXIT_DONE
