"""python -m datakit status and failed: what became of every clip, also while a run is going on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .. import console
from ..errors import EXIT_DONE
from . import NOT_LET_IN, Commands, command, counted, set_dir

if TYPE_CHECKING:
    from ..rollup import Gap


def add(commands: Commands) -> None:
    status = command(commands, "status", "what happened: counts for each variant and split, and a histogram of reasons")
    status.set_defaults(main=_status)
    failed = command(commands, "failed", "every clip that is not there, by name and reason")
    failed.set_defaults(main=_failed)


def _now(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """A row a clip for each variant, from the journals, also while a run is going on; with ``tries``, ``last_utc``."""
    from .. import adopt, catalog, flowset, lists
    from ..annotations import JOURNAL
    from ..journal import Journal
    from ..layout import stage_of

    folder = set_dir(args)
    adopted = sorted(path.parent for path in folder.glob(f"*/{JOURNAL}"))
    tables = {}
    if not adopted or (folder / JOURNAL).is_file():
        with Journal.read(folder / JOURNAL) as journal:
            allowed = float(journal.setting("allow_damaged") or NOT_LET_IN)
            for name in (journal.setting("variants") or "").split():
                _, rows = lists.table(folder, catalog.variant(name), journal, catalog.dataset(args.name), allowed)
                tables[name] = _with_tries(rows, journal.tries(stage_of(name)))
            for name, flow in flowset.stored_variants(journal).items():
                _, rows = flowset.table(folder, flow, journal)
                tables[name] = _with_tries(rows, journal.tries(stage_of(name)))
    for variant in adopted:
        with Journal.read(variant / JOURNAL) as journal:
            if rows := adopt.table(journal):  # none: its list was refused
                tables[variant.name] = _with_tries(rows, journal.tries(adopt.STAGE))
    return tables


def _with_tries(rows: list[dict[str, Any]], tries: dict[str, tuple[int, str]]) -> list[dict[str, Any]]:
    for row in rows:
        row["tries"], row["last_utc"] = tries.get(row["id"], (0, None))
    return rows


def _gaps(args: argparse.Namespace) -> tuple[list[Gap], dict[str, dict[str, int]]]:
    """Videos and events that are missing whole, and how many are whole: of sets whose clips are parts of events."""
    from .. import rollup
    from ..annotations import JOURNAL
    from ..journal import Journal

    if not (set_dir(args) / JOURNAL).is_file():
        return [], {}
    with Journal.read(set_dir(args) / JOURNAL) as journal:
        specs = journal.clips()
    absent = {spec.id for spec in specs if spec.source is None or not spec.source.exists()}
    return rollup.gaps(specs, absent), rollup.levels(specs, absent)


def _files(args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """How many clips of each split have their file, and why others do not; before anything is encoded."""
    from collections import Counter

    from ..annotations import JOURNAL
    from ..journal import Journal
    from ..sources import reasons

    with Journal.read(set_dir(args) / JOURNAL) as journal:
        specs, why = journal.clips(), reasons(journal)
    counts: dict[str, Counter[str]] = {}
    for spec in specs:
        there = spec.source is not None and spec.source.exists()
        lacking = why[spec.id].error.lower() if spec.id in why else "missing" if spec.source else "pending"
        status = "ok" if there else lacking
        counts.setdefault(spec.split, Counter())[status] += 1
    return {split: dict(counts[split]) for split in sorted(counts)}


def _unfetched(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each clip that no source had, before anything is encoded."""
    from ..annotations import JOURNAL
    from ..journal import Journal
    from ..sources import reasons

    with Journal.read(set_dir(args) / JOURNAL) as journal:
        specs, why = journal.clips(), reasons(journal)
        tries = {stage: journal.tries(stage) for stage in {outcome.stage for outcome in why.values()}}
    lacking = [spec for spec in specs if spec.id in why and (spec.source is None or not spec.source.exists())]
    rows = []
    for spec in lacking:
        said = why[spec.id]
        times, last_utc = tries[said.stage][spec.id]
        rows.append({"id": spec.id, "split": spec.split, "label": spec.label, "status": said.error.lower(),
                     "reason": said.message, "tries": times, "last_utc": last_utc})  # fmt: skip
    return rows


def _status(args: argparse.Namespace) -> int:
    from collections import Counter

    report: dict[str, dict[str, Any]] = {}
    tables = _now(args)
    files = {} if tables else _files(args)
    for variant, rows in tables.items():
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
    gaps, levels = _gaps(args)
    if args.json:
        whole = {"levels": levels, "gaps": [gap.to_dict() for gap in gaps]} if levels else {}
        console.print_json("datakit-status", {"set": args.name, "variants": report, "files": files, **whole})
        return EXIT_DONE
    for split, statuses in files.items():
        print(f"{args.name} {split}: {sum(statuses.values())} asked for, files: {counted(statuses)}")
    if not tables and not files:
        print(f"{args.name}: nothing was asked for yet; type: python -m datakit prepare {args.name} --variant VARIANT")
    for variant, entry in report.items():
        print(f"{args.name}/{variant}: {entry['frames']} frames")
        for split, statuses in entry["splits"].items():
            print(f"  {split:6} {sum(statuses.values()):7} asked for: {counted(statuses)}")
        longest = max(entry["reasons"].values(), default=0)
        for reason, count in entry["reasons"].items():
            print(f"  {count:6} {'#' * max(1, round(30 * count / longest)):30} {reason}")
    for kind, counts in levels.items():
        print(f"{kind}: " + ", ".join(f"{number} {what}" for what, number in counts.items() if number))
    for gap in gaps:
        print(f"  {gap}")
    return EXIT_DONE


def _failed(args: argparse.Namespace) -> int:
    wanted = ("id", "split", "label", "status", "reason", "tries", "last_utc")
    tables = _now(args) or {"not encoded": _unfetched(args)}
    failed = [
        {"variant": variant, **{name: row[name] for name in wanted}}
        for variant, rows in tables.items()
        for row in rows
        if row["status"] not in ("ok", "pending")
    ]
    gaps, levels = _gaps(args)
    if args.json:
        whole = {"gaps": [gap.to_dict() for gap in gaps]} if levels else {}
        console.print_json("datakit-failed", {"set": args.name, **whole, "failed": failed})
        return EXIT_DONE
    together: dict[tuple[str, str, str], list[str]] = {}
    for row in failed:
        together.setdefault((row["id"], row["status"], str(row["reason"])), []).append(row["variant"])
    reasons = {clip_id: f"{status}: {reason}" for clip_id, status, reason in together}
    for gap in gaps:  # one line for a video, and not one for each of its hundred clips
        why = {reasons[clip_id] for clip_id in gap.ids if clip_id in reasons}
        print(f"{gap}" + (f" ({why.pop()})" if len(why) == 1 else ""))
    said = {clip_id for gap in gaps for clip_id in gap.ids}
    for (clip_id, status, reason), variants in sorted(together.items()):
        if clip_id not in said:
            print(f"{clip_id}  {status}: {reason}  [{', '.join(variants)}]")
    if not failed:
        print(f"{args.name}: nothing failed, nothing is missing")
    return EXIT_DONE


def _kind(status: str, reason: str | None) -> str:
    """A reason without what is particular to one file (numbers, a decoder's words), so that equal ones add up."""
    import re

    text = re.sub(r"\d+", "N", re.split(";|: \\[", reason or "")[0])
    return status if status == "missing" else f"{status}: {text}"
