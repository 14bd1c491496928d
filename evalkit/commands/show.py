"""python -m evalkit show: the numbers of a score file."""

from __future__ import annotations

import argparse

from datakit.errors import EXIT_DONE

from . import Commands, add_groups, add_json, add_scores, print_scores


def add(commands: Commands) -> None:
    show = commands.add_parser("show", help="the numbers and the signature of a score file")
    add_scores(show, several=False)
    add_groups(show)
    add_json(show)
    show.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import scores

    print_scores("evalkit-show", scores.load(args.scores), args.groups, as_json=args.json)
    return EXIT_DONE
