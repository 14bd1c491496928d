"""python -m datakit leakage: ids that splits or data sets share."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import console
from ..errors import EXIT_DONE
from . import Commands, command

NUM_NAMED = 5


def add(commands: Commands) -> None:
    leakage = command(commands, "leakage", "clips, videos and files that splits or data sets have in common")
    leakage.add_argument("others", nargs="*", metavar="OTHER", help="another set, or a file that lists clips")
    leakage.add_argument(
        "--annotations", type=Path, metavar="DIR", help="official lists, of sets that were not prepared (or DIR/NAME/)"
    )
    leakage.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import leakage

    names = dict.fromkeys([args.name, *args.others])
    groups = [one for name in names for one in leakage.members_of(name, args.data_root.absolute(), args.annotations)]
    pairs = list(leakage.shared(groups))
    if args.json:
        splits = [{"set": one.set_name, "split": one.split, "clips": len(one.videos),
                   "videos": len(set(one.videos.values()))} for one in groups]  # fmt: skip
        found = [{"first": pair.first.name, "second": pair.second.name, "clips": list(pair.clips),
                  "videos": None if pair.videos is None else list(pair.videos), "files": list(pair.files)}
                 for pair in pairs]  # fmt: skip
        console.print_json("datakit-leakage", {"splits": splits, "shared": found})
        return EXIT_DONE
    for one in groups:
        print(f"{one.name}: {len(one.videos)} clips of {len(set(one.videos.values()))} videos")
    for pair in pairs:
        print(f"\n{pair.first.name} and {pair.second.name}:")
        if pair.videos is None:
            print("  clips that are only numbered: equal numbers say nothing; same files are looked for")
        else:
            print(f"  {len(pair.clips):7} clips in both{_named(pair.clips)}")
            print(f"  {len(pair.videos):7} videos in both{_named(pair.videos)}")
            if pair.videos:
                print(
                    f"          they have {pair.num_clips_of_shared_videos(pair.first)} clips of {pair.first.name}, "
                    f"{pair.num_clips_of_shared_videos(pair.second)} of {pair.second.name}"
                )
        if pair.files:
            print(f"  {len(pair.files):7} files that are the same under another name"
                  f"{_named([f'{first} = {second}' for first, second in pair.files])}")  # fmt: skip
    if not pairs:
        print("nothing in common")
    return EXIT_DONE


def _named(ids: list[str] | tuple[str, ...]) -> str:
    if not ids:
        return ""
    more = f" and {len(ids) - NUM_NAMED} more (--json has all)" if len(ids) > NUM_NAMED else ""
    return f": {', '.join(ids[:NUM_NAMED])}{more}"
