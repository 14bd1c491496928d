"""python -m datakit lists"""

from __future__ import annotations

import argparse

from .. import console
from ..errors import EXIT_DONE
from . import NOT_LET_IN, Commands, add_variants, command, counted, prepared_variants, set_dir


def add(commands: Commands) -> None:
    lists = command(commands, "lists", "write manifest and frame lists again from the journal")
    add_variants(lists)
    lists.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import catalog, lists
    from ..annotations import JOURNAL
    from ..journal import Journal

    folder = set_dir(args)
    with Journal.open(folder / JOURNAL) as journal:
        allowed = float(journal.setting("allow_damaged") or NOT_LET_IN)
        counts = {
            name: lists.write(folder, catalog.variant(name), journal, catalog.dataset(args.name), allowed)
            for name in prepared_variants(args)
        }
    if args.json:
        console.print_json("datakit-lists", {"set": args.name, "variants": counts})
    else:
        for name, statuses in counts.items():
            print(f"{folder / name / 'lists'}: {counted(statuses)}")
    return EXIT_DONE
