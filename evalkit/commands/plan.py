"""python -m evalkit plan: which frames and crops of a video a protocol looks at."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from datakit import console
from datakit.errors import EXIT_DONE, UsageError

from . import Commands, add_json

if TYPE_CHECKING:
    from models import ModelSpec


def add(commands: Commands) -> None:
    plan = commands.add_parser("plan", help="which frames and crops of a video a protocol looks at, drawn over it")
    plan.add_argument("checkpoint", type=Path, nargs="?", metavar="CKPT", help="a checkpoint; not needed with --name")
    plan.add_argument("video", type=Path, metavar="VIDEO", help="a video file, or a folder of JPEG frames or flow")
    plan.add_argument("--out", type=Path, metavar="PNG", help="write the picture here")
    plan.add_argument("--mode", choices=("efficient", "accurate"), default="accurate", help="(default: accurate)")
    plan.add_argument("--name", metavar="NETWORK", help="a network by name, or what a checkpoint is that does not say")
    plan.add_argument("--protocol", metavar="ROW", help="this row in place of the network's")
    plan.add_argument("--views", metavar="5x1@224", help="clips x crops @ crop side, in place of the protocol's")
    plan.add_argument("--sampling", metavar="RULE", help="mmaction2-0.x, mmaction2-1.x, ... in place of the protocol's")
    add_json(plan)
    plan.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from .. import plan, protocols

    if not args.video.exists():
        raise UsageError(f"{args.video} is not there; type the path of a video")
    if args.out and args.out.suffix.lower() != ".png":
        raise UsageError(f"--out {args.out}: the picture is a PNG; type --out {args.out.with_suffix('.png')}")
    spec = _spec(args)
    protocol = protocols.as_typed(protocols.for_network(spec, args.mode, args.protocol), args.views, args.sampling)
    found = plan.look(args.video, spec, protocol)
    if args.out:
        plan.save(found, args.out)
    if args.json:
        document = {
            "network": spec.name,
            "origin": spec.origin,
            "protocol": {**asdict(protocol), "views": protocol.views},
        }
        console.print_json("evalkit-plan", {**document, **found.to_dict(), "out": str(args.out) if args.out else None})
        return EXIT_DONE
    print(f"network   {spec.name} ({spec.origin}): {spec.clip_len} frames, {spec.frame_interval} apart"
          + (f", {spec.num_segments} segments" if spec.num_segments else ""))  # fmt: skip
    print("\n".join(plan.describe(found)))
    if args.out:
        print(f"written   {args.out}")
    return EXIT_DONE


def _spec(args: argparse.Namespace) -> ModelSpec:
    import models
    from models import zoo

    if args.checkpoint is None:
        if args.name is None:
            raise UsageError("which network? type a checkpoint before the video, or --name NETWORK")
        return zoo.spec(args.name, num_classes=1)
    if not args.checkpoint.is_file():
        raise UsageError(f"{args.checkpoint} is not there; type the path of a checkpoint file, or --name NETWORK alone")
    return models.load(args.checkpoint, name=args.name).spec
