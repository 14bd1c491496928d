"""python -m datakit prepare"""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import console
from ..errors import EXIT_DONE, EXIT_SOME_FAILED, UsageError
from . import NOT_LET_IN, Commands, add_cluster, add_jobs, command, counted, root_option, set_name
from .fetch import add_options, options


def add(commands: Commands) -> None:
    prepare = command(commands, "prepare", "find, encode, check and list the videos of a set; run again to go on")
    prepare.add_argument("--raw", type=Path, metavar="DIR", help="the folder that holds the videos")
    prepare.add_argument(
        "--labels", type=Path, metavar="CSV", help="own videos: path,label[,split] (else: class folders)"
    )
    prepare.add_argument("--annotations", type=Path, metavar="FILE|DIR", help="official list of a data set we know")
    prepare.add_argument("--label-order", metavar="ORDER|FILE", help="as for lists; default: official, else as before")
    prepare.add_argument("--split", action="append", default=[], metavar="SPLIT", help="only this split (repeatable)")
    prepare.add_argument(
        "--variant", action="append", default=[], metavar="VARIANT", help="256p, 320p, ... (repeatable)"
    )
    prepare.add_argument(
        "--container",
        choices=["mp4", "frames"],
        help="one video a clip, or a folder of JPEG files (variant 256p-frames); default: mp4, and the native variant "
        "of folders of pictures as they are",
    )
    prepare.add_argument("--fps", type=float, metavar="N", help="rate of folders of pictures (default: known, or 25)")
    add_jobs(prepare, "encodes at once")
    add_cluster(prepare)
    prepare.add_argument("--limit", type=int, metavar="N", help="encode at most N clips this time, for a trial")
    prepare.add_argument(
        "--allow-damaged", type=float, default=NOT_LET_IN, metavar="SHARE",
        help="let in sources of which at least this share of the frames decodes (default: none)",
    )  # fmt: skip
    prepare.add_argument("--retry-failed", action="store_true", help="try failed sources again")
    add_options(prepare)
    prepare.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import catalog, runner
    from ..prepare import Request, prepare

    if not args.variant:
        raise UsageError(f"which variant? type one or more of: --variant {' --variant '.join(catalog.variant_names())}")
    for value, name in ((args.jobs, "--jobs"), (args.limit, "--limit")):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: type a number of at least 1")
    if not (0 < args.allow_damaged <= 1 or args.allow_damaged == NOT_LET_IN):
        raise UsageError(f"--allow-damaged {args.allow_damaged:g}: type a share of the frames, such as 0.9")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise UsageError(f"--fps {args.fps:g}: type frames a second, such as 12")
    dataset = catalog.dataset(set_name(args.name))
    request = Request(
        name=set_name(args.name),
        data_root=args.data_root.absolute(),
        raw=args.raw,
        labels=args.labels,
        annotations=args.annotations,
        splits=tuple(args.split),
        variants=tuple(
            catalog.variant(name)
            for name in dict.fromkeys(catalog.in_container(name, args.container, dataset) for name in args.variant)
        ),
        num_jobs=args.jobs,
        limit=args.limit,
        allow_damaged=args.allow_damaged,
        retry_failed=args.retry_failed,
        folder_fps=args.fps,
        label_order=args.label_order,
        fetching=options(args),
    )
    with runner.on_cluster(args.cluster):
        counts = prepare(request)
    if args.json:
        console.print_json("datakit-prepare", {"set": request.name, "variants": counts})
    else:
        for variant, statuses in counts.items():
            print(f"{request.name}/{variant}: {counted(statuses)}")
    bad = {status for statuses in counts.values() for status in statuses} - {"ok", "pending"}
    if "retryable" in bad and not args.json:
        print("the same command tries the retryable ones again")
    if bad and not args.json:
        print(f"by name and reason: python -m datakit failed {request.name}{root_option(args)}")
    return EXIT_SOME_FAILED if bad else EXIT_DONE
