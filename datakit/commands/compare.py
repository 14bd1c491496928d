"""python -m datakit compare: this copy beside the published ones."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .. import console, fingerprint
from ..errors import EXIT_DONE, UsageError
from . import Commands, command, prepared_variants, set_dir

NUM_NAMED = 10


def add(commands: Commands) -> None:
    compare = command(commands, "compare", "how this copy of a data set differs from the published copies of it")
    compare.add_argument(
        "--with", dest="copies", action="append", default=[], metavar="COPY",
        help="pyslowfast, mmaction2, ... (several: a,b; default: all that are known)",
    )  # fmt: skip
    compare.add_argument("--variant", metavar="VARIANT", help="the prepared variant (default: the first)")
    compare.add_argument("--split", metavar="SPLIT", help="default: every split of which published copies are known")
    compare.add_argument(
        "--list", type=Path, metavar="FILE", help="compare this list (a path or id a line) instead of a prepared set"
    )
    compare.add_argument(
        "--annotations", type=Path, metavar="FILE", help="the official list of the split, to name what is lacking"
    )
    compare.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from ..copies import ids_in

    lists = fingerprint.official_lists(args.name, args.split)
    if not lists:
        known = ", ".join(sorted({f"{one.set_name} {one.split}" for one in fingerprint.official_lists()}))
        raise UsageError(
            f"no published copy of {args.name} {args.split or ''} is known; there are some of: {known}. A list that "
            f"you have becomes one with scripts/copies.py"
        )
    args.copies = [name for names in args.copies for name in names.split(",")]
    _check_copies(args.copies, lists)
    if args.list:
        if len(lists) > 1:
            raise UsageError(
                f"which split does {args.list} list? type --split with one of: {', '.join(o.split for o in lists)}"
            )
        ids = {lists[0].split: ids_in(args.list)}
        asked = dict.fromkeys(ids, frozenset[str]())
        variant = args.list.name
    else:
        variant, ids, asked = _prepared(args)
    report: dict[str, Any] = {}
    for official in lists:
        if official.split not in ids:
            continue
        mine = ids[official.split]
        names = ids_in(args.annotations) if args.annotations else asked[official.split]
        matches = [
            match
            for match in fingerprint.copies_matching(mine, names, set_name=args.name, split=official.split)
            if not args.copies or match.copy.name in args.copies
        ]
        if not matches:
            continue
        report[official.split] = _described(official, mine, matches)
        if not args.json:
            _print(f"{args.name}/{variant}", official, mine, matches)
    if not report:
        raise UsageError(
            f"{args.name}/{variant} has no split of which these copies are known "
            f"({', '.join(sorted({o.split for o in lists}))}); type --list FILE or another --variant"
        )
    if args.json:
        console.print_json("datakit-compare", {"set": args.name, "variant": variant, "splits": report})
    return EXIT_DONE


def _check_copies(asked: list[str], lists: list[fingerprint.OfficialList]) -> None:
    known = sorted({copy.name for one in lists for copy in one.copies})
    for name in asked:
        if name not in known:
            raise UsageError(f"no published copy {name!r}; type --with one of: {', '.join(known)}")


def _prepared(args: argparse.Namespace) -> tuple[str, dict[str, set[str]], dict[str, frozenset[str]]]:
    """(variant, ids that are there by split, ids that the list asks for by split)"""
    from .. import manifest

    args.variant = [args.variant] if args.variant else []
    variant = prepared_variants(args)[0]
    clips = manifest.read(set_dir(args) / variant).clips
    splits = {clip.split for clip in clips}
    there = {split: {clip.id for clip in clips if clip.split == split and clip.path is not None} for split in splits}
    asked = {split: frozenset(clip.id for clip in clips if clip.split == split) for split in splits}
    return variant, there, asked


def _described(
    official: fingerprint.OfficialList, mine: Collection[str], matches: list[fingerprint.CopyMatch]
) -> dict[str, Any]:
    return {
        "here": len(mine),
        "official": official.num_ids,
        "foreign": list(matches[0].foreign),
        "copies": {
            match.copy.name: {
                "title": match.copy.title,
                "source": match.copy.source,
                "note": match.copy.note,
                "there": match.copy.num_ids,
                "both": match.num_both,
                "only_here": None if match.num_both is None else list(match.only_here),
                "only_there": None if match.only_there is None else list(match.only_there),
                "largest_top1_shift_points": round(match.largest_top1_shift, 4) if official.split != "train" else None,
            }
            for match in matches
        },
    }


def _print(
    what: str, official: fingerprint.OfficialList, mine: Collection[str], matches: list[fingerprint.CopyMatch]
) -> None:
    lacking = official.num_ids - len(mine) + len(matches[0].foreign)
    print(f"{what} {official.split}: {len(mine)} clips; the official list has {official.num_ids}")
    tested = official.split != "train"  # nobody's top-1 is that of a training list
    if lacking > 0:
        what = ""
        if tested:
            what = (": from all of them wrong to all of them right, top-1 over the official list moves by "
                    f"{100 * lacking / official.num_ids:.2f} points")  # fmt: skip
        print(f"  {lacking} of the official ones are not here{what}")
    if matches[0].foreign:
        print(f"  {len(matches[0].foreign)} are not on the official list: {_named(matches[0].foreign)}")
    for match in matches:
        print(f"\n{match.copy.name}: {match}")
        print(f"  {match.copy.source}" + (f"; {match.copy.note}" if match.copy.note else ""))
        if match.num_both is not None:
            num_there = match.copy.num_ids - match.num_both
            if match.only_here:
                print(f"  only here  {len(match.only_here):6}: {_named(match.only_here)}")
            if num_there:
                names = "which ones: type --annotations with the official list of the split"
                if match.only_there is not None:
                    names = _named(match.only_there)
                print(f"  only there {num_there:6}: {names}")
        if match.num_different and tested:
            print(
                f"  one network's top-1 can differ by at most {match.largest_top1_shift:.2f} points between the two: "
                f"right on every clip that only one has, wrong on every clip that only the other has"
            )


def _named(ids: Collection[str]) -> str:
    first = sorted(ids)[:NUM_NAMED]
    return ", ".join(first) + (f" and {len(ids) - len(first)} more (--json has all)" if len(ids) > len(first) else "")
