"""python -m evalkit: show, fuse, compare, report, protocols - everything that works from score files alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datakit import console, files
from datakit.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from .scores import ScoreSet

SHOWN = 10  # missing clips


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m evalkit",
        description="Numbers from score files, as python -m evalkit.run writes them. "
        "A folder stands for the scores.npz in it.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    show = commands.add_parser("show", help="the numbers and the signature of a score file")
    show.add_argument("scores", type=Path, metavar="SCORES")

    fuse = commands.add_parser("fuse", help="add the scores of several streams, joined by clip id")
    fuse.add_argument("scores", type=Path, nargs="+", metavar="SCORES")
    fuse.add_argument("--weights", metavar="W:W", help="one number a file, such as 1:1.5 (default: all 1)")
    fuse.add_argument("--on", choices=("prob", "logit"), default="prob", help="what is added (default: prob)")
    fuse.add_argument("--out", type=Path, metavar="DIR", help="write DIR/scores.npz and DIR/metrics.json")

    compare = commands.add_parser("compare", help="do they differ by more than chance, and what was done differently")
    compare.add_argument("scores", type=Path, nargs="+", metavar="SCORES")
    compare.add_argument("--metric", choices=("top1", "mean_class"), default="top1", help="(default: top1)")
    compare.add_argument("--common", action="store_true", help="compare on the clips that both scored")
    compare.add_argument("--across-copies", action="store_true", help="compare although the files were not the same")

    report = commands.add_parser("report", help="one HTML page about several results")
    report.add_argument("scores", type=Path, nargs="+", metavar="SCORES")
    report.add_argument("--out", type=Path, default=Path("report.html"), help="(default: report.html)")
    report.add_argument("--across-copies", action="store_true", help="compare although the files were not the same")

    protocols = commands.add_parser("protocols", help="the protocols there are")
    for command in (show, fuse, compare, protocols):
        command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    commands = {"show": _show, "fuse": _fuse, "compare": _compare, "report": _report, "protocols": _protocols}
    commands[args.command](args)
    return EXIT_DONE


def _show(args: argparse.Namespace) -> None:
    from . import scores

    _print("evalkit-show", scores.load(args.scores), args.json)


def _fuse(args: argparse.Namespace) -> None:
    from . import scores
    from .fuse import fuse

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
        document = json.dumps(_document(fused), indent=1, allow_nan=False)
        files.write_text(args.out / "metrics.json", document + "\n")
        written = {"out": str(args.out)}
    _print("evalkit-fuse", fused, args.json, **written)
    if written and not args.json:
        print(f"written     {out_file}, {args.out / 'metrics.json'}")


def _compare(args: argparse.Namespace) -> None:
    from . import compare, scores

    found = compare.compare_all(
        [scores.load(path) for path in args.scores],
        [str(path) for path in args.scores],
        metric=args.metric,
        common=args.common,
        across_copies=args.across_copies,
    )
    if args.json:
        console.print_json("evalkit-compare", {"comparisons": [comparison.to_dict() for comparison in found]})
    else:
        print("\n\n".join(compare.describe(comparison) for comparison in found))


def _report(args: argparse.Namespace) -> None:
    from . import report

    print(report.write(args.scores, args.out, across_copies=args.across_copies))


def _protocols(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from . import protocols

    rows = [protocols.get(name, mode) for name in protocols.names() for mode in protocols.modes(name)]
    if args.json:
        console.print_json("evalkit-protocols", {"protocols": [{**asdict(row), "views": row.views} for row in rows]})
        return
    table = [("protocol", "mode", "version", "views", "resize", "frames", "scores")]
    for row in rows:
        size = str(row.short_side_px) if row.resize_px is None else "x".join(map(str, row.resize_px))
        options = "".join(f" {name}={value}" for name, value in row.options.items())
        table.append((row.name, row.mode, str(row.version), row.views, size, row.sampling + options, row.aggregation))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(":")]
    except ValueError:
        raise UsageError(f"--weights {text}: numbers with colons between them; type --weights 1:1.5") from None


def _document(score_set: ScoreSet) -> dict[str, Any]:
    from . import metrics

    return {**metrics.document(score_set, *metrics.rules(score_set)), **_parts(score_set)}


def _parts(score_set: ScoreSet) -> dict[str, Any]:
    return {"fused": score_set.meta["fused"]} if "fused" in score_set.meta else {}


def _print(kind: str, score_set: ScoreSet, as_json: bool, **more: str) -> None:
    from . import metrics

    if as_json:
        console.print_json(kind, {**_document(score_set), **more})
        return
    print(metrics.describe(metrics.summary(score_set, *metrics.rules(score_set)), score_set.signature))
    for part in _parts(score_set).get("fused", []):
        print(f"part        {part['weight']:g} x {part['signature']}")
    for entry in score_set.missing[:SHOWN]:
        print(f"missing     {entry['id']}: {entry['reason']}")
    if len(score_set.missing) > SHOWN:
        print(f"missing     and {len(score_set.missing) - SHOWN} more; --json lists them all")


if __name__ == "__main__":
    console.run(main)
