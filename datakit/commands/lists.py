"""python -m datakit lists"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import console
from ..errors import EXIT_DONE
from . import NOT_LET_IN, Commands, add_variants, command, counted, prepared_variants, set_dir

if TYPE_CHECKING:
    from ..catalog import Dataset


def add(commands: Commands) -> None:
    lists = command(commands, "lists", "write manifest and frame lists again from the journal")
    add_variants(lists)
    lists.add_argument(
        "--label-order", metavar="ORDER|FILE",
        help="number the classes as official, mmaction2, torchvision, sorted or a file has them; kept until changed",
    )  # fmt: skip
    lists.add_argument(
        "--tree", action="store_true", help="also links in VARIANT/tree/SPLIT/CLASS/, as torchvision reads them"
    )
    lists.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import adopt, catalog, flowset, labels, lists
    from ..annotations import JOURNAL
    from ..journal import Journal

    folder, dataset = set_dir(args), catalog.dataset(args.name)
    counts = {}
    ours = []
    for name in prepared_variants(args):
        if not adopt.is_adopted(folder / name):
            ours.append(name)
            continue
        with Journal.open(folder / name / JOURNAL) as journal:
            if args.label_order:
                adopt.renumber(journal, dataset, args.label_order)
            if args.tree:
                _tree(folder / name, adopt.table(journal), adopt.classes(journal), dataset)
            counts[name] = adopt.write(folder / name, journal)
    if ours:
        with Journal.open(folder / JOURNAL) as journal:
            if args.label_order:
                labels.choose(journal, dataset, args.label_order, journal.clips())
            allowed = float(journal.setting("allow_damaged") or NOT_LET_IN)
            flows = flowset.stored_variants(journal)
            # Flow after the variants that it is of: its lists take their labels from there.
            for name in sorted(ours, key=lambda name: name in flows):
                if name in flows:
                    counts[name] = flowset.write(folder, flows[name], journal)
                    continue
                if args.tree:
                    classes, rows = lists.table(folder, catalog.variant(name), journal, dataset, allowed)
                    _tree(folder / name, rows, classes, dataset)
                counts[name] = lists.write(folder, catalog.variant(name), journal, dataset, allowed)
    if args.json:
        console.print_json("datakit-lists", {"set": args.name, "variants": counts})
    else:
        for name, statuses in counts.items():
            print(f"{folder / name / 'lists'}: {counted(statuses)}")
    return EXIT_DONE


def _tree(folder: Path, rows: list[dict[str, Any]], classes: Sequence[str], dataset: Dataset | None) -> None:
    from .. import labels, lists

    num_links = lists.write_tree(folder, rows, classes, labels.class_folder(dataset))
    print(f"{folder / lists.TREE}: {num_links} links", file=sys.stderr)
