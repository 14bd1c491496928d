"""python -m datakit flow"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .. import console
from ..errors import EXIT_DONE, EXIT_SOME_FAILED, UsageError
from . import Commands, add_cluster, add_jobs, command, counted, root_option, set_name

JOBS_A_GPU = 4  # some decode and write while others compute; each holds its own copy of torch


def add(commands: Commands) -> None:
    flow = command(commands, "flow", "optical flow of a prepared variant, checked and listed; run again to go on")
    flow.add_argument("--variant", metavar="VARIANT", help="the RGB variant to work from, such as 256p")
    flow.add_argument(
        "--method", choices=["tvl1", "dis", "raft"], default="tvl1",
        help="tvl1: as published networks were trained; dis: a hundred times faster, needs OpenCV; raft: a network",
    )  # fmt: skip
    flow.add_argument(
        "--params", metavar="NAME",
        help="tvl1: opencv, opencv-cuda (denseflow's), fast; dis: medium, fast, ultrafast; raft: large, small",
    )  # fmt: skip
    flow.add_argument("--weights", type=Path, metavar="FILE", help="raft: a weights file of torchvision's RAFT")
    flow.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute (default: cpu)")
    flow.add_argument(
        "--container", choices=["frames", "mp4"], default="frames",
        help="frames: two JPEG files a flow; mp4: one grey video a clip, x above y, about a tenth of the bytes",
    )  # fmt: skip
    flow.add_argument(
        "--names", choices=["denseflow", "mmaction2"], default="denseflow",
        help="denseflow: flow_x_00001.jpg; mmaction2: x_00001.jpg",
    )  # fmt: skip
    flow.add_argument("--split", action="append", default=[], metavar="SPLIT", help="only this split (repeatable)")
    add_jobs(flow, f"clips at once (on a GPU by default at most {JOBS_A_GPU})")
    add_cluster(flow)
    flow.add_argument("--limit", type=int, metavar="N", help="work on at most N clips this time, for a trial")
    flow.add_argument("--retry-failed", action="store_true", help="try failed clips again")
    flow.set_defaults(main=main, jobs=None)


def main(args: argparse.Namespace) -> int:
    from .. import flow, runner
    from ..flowset import Request, make_flow

    if not args.variant:
        raise UsageError(f"flow of which variant? type: python -m datakit flow {args.name} --variant 256p")
    for value, name in ((args.jobs, "--jobs"), (args.limit, "--limit")):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: type a number of at least 1")
    num_cores = os.cpu_count() or 1
    request = Request(
        name=set_name(args.name),
        data_root=args.data_root.absolute(),
        base=args.variant,
        method=args.method,
        params=args.params or flow.parameter_sets(args.method)[0],
        container=args.container,
        names=args.names,
        weights=args.weights,
        device=args.device,
        splits=tuple(args.split),
        num_jobs=args.jobs or (min(JOBS_A_GPU, num_cores) if args.device == "cuda" else num_cores),
        limit=args.limit,
        retry_failed=args.retry_failed,
    )
    with runner.on_cluster(args.cluster):
        variant, statuses = make_flow(request)
    bad = set(statuses) - {"ok", "pending"}
    if args.json:
        console.print_json("datakit-flow", {"set": request.name, "variants": {variant: statuses}})
    else:
        print(f"{request.name}/{variant}: {counted(statuses)}")
        if bad:
            print(f"by name and reason: python -m datakit failed {request.name}{root_option(args)}")
    return EXIT_SOME_FAILED if bad else EXIT_DONE
