"""python -m evalkit fuse: a weighted sum of several streams."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from datakit import files
from datakit.errors import EXIT_DONE, UsageError

from . import Commands, add_groups, add_json, add_scores, document, print_scores


def add(commands: Commands) -> None:
    fuse = commands.add_parser("fuse", help="add the scores of several streams, joined by clip id")
    add_scores(fuse)
    fuse.add_argument("--weights", metavar="W:W", help="one number a file, such as 1:1.5 (default: all 1)")
    fuse.add_argument("--on", choices=("prob", "logit"), default="prob", help="what is added (default: prob)")
    fuse.add_argument("--out", type=Path, metavar="DIR", help="write DIR/scores.npz and DIR/metrics.json")
    add_groups(fuse)
    add_json(fuse)
    fuse.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import scores
    from ..fuse import fuse

    out_file = None if args.out is None else args.out / scores.FILE_NAME
    parts = []
    for path in args.scores:
        parts.append(scores.load(path))
        file = path / scores.FILE_NAME if path.is_dir() else path
        if out_file is not None and out_file.exists() and out_file.samefile(file):
            raise UsageError(f"--out {args.out} would overwrite {file}, which is being fused; type another --out DIR")
    fused = fuse(parts, None if args.weights is None else _weights(args.weights), args.on)
    written = {}
    if out_file is not None:
        fused.save(out_file)
        files.write_text(
            args.out / "metrics.json", json.dumps(document(fused, args.groups), indent=1, allow_nan=False) + "\n"
        )
        written = {"out": str(args.out)}
    print_scores("evalkit-fuse", fused, args.groups, as_json=args.json, **written)
    if written and not args.json:
        print(f"written     {out_file}, {args.out / 'metrics.json'}")
    return EXIT_DONE


def _weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(":")]
    except ValueError:
        raise UsageError(f"--weights {text}: numbers with colons between them; type --weights 1:1.5") from None
