"""python -m datakit: prepare, verify, lists, status, failed."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import console
from .errors import EXIT_DONE, EXIT_SOME_FAILED, UsageError

NOT_LET_IN = 2.0  # no share of frames reaches it


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m datakit", description="Prepare, verify and list videos.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what)
        sub.add_argument(
            "name", metavar="NAME", help="the set: a data set we know (k400) or a name for your own videos"
        )
        sub.add_argument(
            "--data-root", type=Path, default=Path("data"), help="where prepared sets live (default: data)"
        )
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout")
        return sub

    prepare = command("prepare", "find, encode, check and list the videos of a set; run again to go on")
    prepare.add_argument("--raw", type=Path, metavar="DIR", help="the folder that holds the videos")
    prepare.add_argument(
        "--labels", type=Path, metavar="CSV", help="own videos: path,label[,split] (else: class folders)"
    )
    prepare.add_argument("--annotations", type=Path, metavar="FILE|DIR", help="official list of a data set we know")
    prepare.add_argument("--split", action="append", default=[], metavar="SPLIT", help="only this split (repeatable)")
    prepare.add_argument(
        "--variant", action="append", default=[], metavar="VARIANT", help="256p, 320p, ... (repeatable)"
    )
    prepare.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="encodes at once")
    prepare.add_argument("--limit", type=int, metavar="N", help="encode at most N clips this time, for a trial")
    prepare.add_argument(
        "--allow-damaged", type=float, default=NOT_LET_IN, metavar="SHARE",
        help="let in sources of which at least this share of the frames decodes (default: none)",
    )  # fmt: skip
    prepare.add_argument("--retry-failed", action="store_true", help="try failed sources again")
    for sub in (command("verify", "decode every file again and compare with the manifest; changes nothing"),
                command("lists", "write manifest and frame lists again from the journal")):  # fmt: skip
        sub.add_argument("--variant", action="append", default=[], metavar="VARIANT", help="only this one (repeatable)")
        sub.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    command("status", "what happened: counts for each variant and split, and a histogram of reasons")
    command("failed", "every clip that is not there, by name and reason")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    return {"prepare": _prepare, "verify": _verify, "lists": _lists, "status": _status, "failed": _failed}[
        args.command
    ](args)


def _prepare(args: argparse.Namespace) -> int:
    from . import catalog
    from .prepare import Request, prepare

    if not args.variant:
        raise UsageError(f"which variant? type one or more of: --variant {' --variant '.join(catalog.variant_names())}")
    for value, name in ((args.jobs, "--jobs"), (args.limit, "--limit")):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: type a number of at least 1")
    if not (0 < args.allow_damaged <= 1 or args.allow_damaged == NOT_LET_IN):
        raise UsageError(f"--allow-damaged {args.allow_damaged:g}: type a share of the frames, such as 0.9")
    request = Request(
        name=_set_name(args.name),
        data_root=args.data_root.absolute(),
        raw=args.raw,
        labels=args.labels,
        annotations=args.annotations,
        splits=tuple(args.split),
        variants=tuple(catalog.variant(name) for name in dict.fromkeys(args.variant)),
        num_jobs=args.jobs,
        limit=args.limit,
        allow_damaged=args.allow_damaged,
        retry_failed=args.retry_failed,
    )
    counts = prepare(request)
    if args.json:
        console.print_json("datakit-prepare", {"set": request.name, "variants": counts})
    else:
        for variant, statuses in counts.items():
            print(f"{request.name}/{variant}: {_counted(statuses)}")
    bad = {status for statuses in counts.values() for status in statuses} - {"ok", "pending"}
    if "retryable" in bad and not args.json:
        print("the same command tries the retryable ones again")
    if bad and not args.json:
        print(f"by name and reason: python -m datakit failed {request.name}{_root_option(args)}")
    return EXIT_SOME_FAILED if bad else EXIT_DONE


def _verify(args: argparse.Namespace) -> int:
    import tempfile

    from . import manifest
    from .verify import verify

    report = {}
    for variant in _variants(args):
        clips = [clip for clip in manifest.read(_set_dir(args) / variant).clips if clip.path is not None]
        with tempfile.TemporaryDirectory() as notes:
            outcomes = verify(clips, args.jobs, Path(notes))
            bad = [
                o for o in console.progress(outcomes, total=len(clips), what=f"verify {variant}") if o.status != "ok"
            ]
        bad.sort(key=lambda outcome: outcome.id)
        report[variant] = {"checked": len(clips), "ok": len(clips) - len(bad),
                           "bad": [{"id": o.id, "error": o.error, "reason": o.message} for o in bad]}  # fmt: skip
        if not args.json:
            print(f"{args.name}/{variant}: {len(clips)} files decoded, {len(clips) - len(bad)} as recorded")
            for outcome in bad:
                print(f"  {outcome.id}  {outcome.error}: {outcome.message}")
    if args.json:
        console.print_json("datakit-verify", {"set": args.name, "variants": report})
    return EXIT_SOME_FAILED if any(one["bad"] for one in report.values()) else EXIT_DONE


def _lists(args: argparse.Namespace) -> int:
    from . import catalog, lists
    from .annotations import JOURNAL
    from .journal import Journal

    set_dir = _set_dir(args)
    with Journal.open(set_dir / JOURNAL) as journal:
        allowed = float(journal.setting("allow_damaged") or NOT_LET_IN)
        counts = {
            name: lists.write(set_dir, catalog.variant(name), journal, catalog.dataset(args.name), allowed)
            for name in _variants(args)
        }
    if args.json:
        console.print_json("datakit-lists", {"set": args.name, "variants": counts})
    else:
        for name, statuses in counts.items():
            print(f"{set_dir / name / 'lists'}: {_counted(statuses)}")
    return EXIT_DONE


def _now(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """A row a clip for each variant, from the journal, also while a run is going on; with ``tries``, ``last_utc``."""
    from . import catalog, lists
    from .annotations import JOURNAL
    from .journal import Journal
    from .layout import stage_of

    set_dir = _set_dir(args)
    tables = {}
    with Journal.read(set_dir / JOURNAL) as journal:
        allowed = float(journal.setting("allow_damaged") or NOT_LET_IN)
        for name in (journal.setting("variants") or "").split():
            tries = journal.tries(stage_of(name))
            _, rows = lists.table(set_dir, catalog.variant(name), journal, catalog.dataset(args.name), allowed)
            for row in rows:
                row["tries"], row["last_utc"] = tries.get(row["id"], (0, None))
            tables[name] = rows
    return tables


def _status(args: argparse.Namespace) -> int:
    from collections import Counter

    report: dict[str, dict[str, Any]] = {}
    for variant, rows in _now(args).items():
        report[variant] = {
            "splits": {
                split: dict(Counter(row["status"] for row in rows if row["split"] == split))
                for split in sorted({row["split"] for row in rows})
            },
            "frames": sum(row.get("frames") or 0 for row in rows),
            "reasons": dict(
                Counter(_kind(row["status"], row["reason"]) for row in rows if row["reason"]).most_common()
            ),
        }
    if args.json:
        console.print_json("datakit-status", {"set": args.name, "variants": report})
        return EXIT_DONE
    for variant, entry in report.items():
        print(f"{args.name}/{variant}: {entry['frames']} frames")
        for split, statuses in entry["splits"].items():
            print(f"  {split:6} {sum(statuses.values()):7} asked for: {_counted(statuses)}")
        longest = max(entry["reasons"].values(), default=0)
        for reason, count in entry["reasons"].items():
            print(f"  {count:6} {'#' * max(1, round(30 * count / longest)):30} {reason}")
    return EXIT_DONE


def _failed(args: argparse.Namespace) -> int:
    wanted = ("id", "split", "label", "status", "reason", "tries", "last_utc")
    failed = [
        {"variant": variant, **{name: row[name] for name in wanted}}
        for variant, rows in _now(args).items()
        for row in rows
        if row["status"] not in ("ok", "pending")
    ]
    if args.json:
        console.print_json("datakit-failed", {"set": args.name, "failed": failed})
        return EXIT_DONE
    together: dict[tuple[str, str, str], list[str]] = {}
    for row in failed:
        together.setdefault((row["id"], row["status"], str(row["reason"])), []).append(row["variant"])
    for (clip_id, status, reason), variants in sorted(together.items()):
        print(f"{clip_id}  {status}: {reason}  [{', '.join(variants)}]")
    if not failed:
        print(f"{args.name}: nothing failed, nothing is missing")
    return EXIT_DONE


def _kind(status: str, reason: str | None) -> str:
    """A reason without what is particular to one file (numbers, a decoder's words), so that equal ones add up."""
    import re

    text = re.sub(r"\d+", "N", re.split(";|: \\[", reason or "")[0])
    return status if status == "missing" else f"{status}: {text}"


def _counted(statuses: dict[str, int]) -> str:
    order = sorted(statuses, key=lambda status: (status != "ok", status))
    return ", ".join(f"{statuses[status]} {status}" for status in order) or "nothing"


def _set_name(name: str) -> str:
    if not name or name != Path(name).name or name.startswith("."):
        raise UsageError(f"{name!r} cannot name a set: it becomes a folder; type a plain name such as mine")
    return name


def _set_dir(args: argparse.Namespace) -> Path:
    return Path(args.data_root.absolute() / _set_name(args.name))


def _variants(args: argparse.Namespace) -> list[str]:
    """The variants asked for, or all that were prepared."""
    set_dir = _set_dir(args)
    there = sorted(path.parent.name for path in set_dir.glob("*/manifest.parquet"))
    if not there:
        raise UsageError(
            f"nothing was prepared in {set_dir}; type: python -m datakit prepare {args.name} --raw DIR --variant 256p"
        )
    asked = getattr(args, "variant", None) or there
    for name in asked:
        if name not in there:
            raise UsageError(f"{set_dir} has no variant {name}; type --variant with one of: {', '.join(there)}")
    return list(asked)


def _root_option(args: argparse.Namespace) -> str:
    return "" if args.data_root == Path("data") else f" --data-root {shlex.quote(str(args.data_root))}"


if __name__ == "__main__":
    console.run(main)
