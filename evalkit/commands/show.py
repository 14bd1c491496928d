"""python -m evalkit show: the numbers of a score file."""

from __future__ import annotations

import argparse

from datakit.errors import EXIT_DONE

from . import Commands, add_foreign, add_groups, add_json, add_scores, print_scores
from .foreign import Foreign


def add(commands: Commands) -> None:
    show = commands.add_parser("show", help="the numbers and the signature of a score file")
    add_scores(show, several=False)
    add_foreign(show)
    add_groups(show)
    add_json(show)
    show.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    (score_set,) = Foreign(args.list, args.classes).load_all([args.scores])
    print_scores("evalkit-show", score_set, args.groups, as_json=args.json)
    return EXIT_DONE
