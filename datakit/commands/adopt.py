"""python -m datakit adopt"""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import console
from ..errors import EXIT_DONE, EXIT_SOME_FAILED, UsageError
from . import NOT_LET_IN, Commands, add_jobs, command, counted, root_option, set_name


def add(commands: Commands) -> None:
    adopt = command(
        commands, "adopt", "make somebody else's copy a variant: decode, measure and hash it, change nothing in it"
    )
    adopt.add_argument("--root", type=Path, required=True, metavar="DIR", help="the folder that holds the copy")
    adopt.add_argument("--variant", required=True, metavar="NAME", help="what to call it here, such as theirs-256")
    adopt.add_argument(
        "--list", type=Path, metavar="FILE", help="their list: lines of path label, or path frames label (else: ours)"
    )
    adopt.add_argument(
        "--classes", type=Path, metavar="FILE", help="what the numbers in --list mean, where it is own data"
    )
    adopt.add_argument(
        "--split", default="", metavar="SPLIT", help="the list's split (default: as its name says, or val)"
    )
    adopt.add_argument("--annotations", type=Path, metavar="FILE|DIR", help="official list of a data set we know")
    adopt.add_argument("--label-order", metavar="ORDER|FILE", help="order of the numbers in --list (default: official)")
    add_jobs(adopt, "files decoded at once")
    adopt.add_argument(
        "--allow-damaged", type=float, default=NOT_LET_IN, metavar="SHARE",
        help="list files of which at least this share of the frames decodes (default: none)",
    )  # fmt: skip
    adopt.add_argument("--retry-failed", action="store_true", help="look again at files that could not be read")
    adopt.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from ..adopt import Request, adopt

    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}: type a number of at least 1")
    if not (0 < args.allow_damaged <= 1 or args.allow_damaged == NOT_LET_IN):
        raise UsageError(f"--allow-damaged {args.allow_damaged:g}: type a share of the frames, such as 0.9")
    request = Request(
        name=set_name(args.name),
        data_root=args.data_root.absolute(),
        root=args.root,
        variant=args.variant,
        list_file=args.list,
        classes=args.classes,
        annotations=args.annotations,
        label_order=args.label_order,
        split=args.split,
        num_jobs=args.jobs,
        allow_damaged=args.allow_damaged,
        retry_failed=args.retry_failed,
    )
    counts = adopt(request)
    if args.json:
        payload = {"set": request.name, "variant": request.variant, "root": str(args.root.resolve()), "clips": counts}
        console.print_json("datakit-adopt", payload)
    else:
        print(f"{request.name}/{request.variant}: {counted(counts)}")
    bad = counts.keys() - {"ok", "pending"}
    if bad and not args.json:
        print(f"by name and reason: python -m datakit failed {request.name}{root_option(args)}")
    return EXIT_SOME_FAILED if bad else EXIT_DONE
