"""python -m evalkit curve: what the number of views buys."""

from __future__ import annotations

import argparse
import logging
import re
from typing import TYPE_CHECKING

from datakit import console
from datakit.errors import EXIT_DONE, KitError, UsageError

from . import Commands, add_groups, add_json, add_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from models import ModelSpec
    from models.cost import Cost

    from ..protocols import Protocol
    from ..scores import ScoreSet

log = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    curve = commands.add_parser("curve", help="accuracy against views and multiply-adds, from a run with --save-views")
    add_scores(curve, several=False)
    curve.add_argument("--macs-per-view", metavar="38.6G", help="multiply-adds of one view, where the file lacks them")
    add_groups(curve)
    add_json(curve)
    curve.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    from .. import curve, groups, scores

    score_set = scores.load(args.scores)
    macs = macs_per_view(score_set) if args.macs_per_view is None else number(args.macs_per_view)
    found = curve.of(score_set, macs_per_view=macs, groups=groups.of(score_set, args.groups))
    if args.json:
        console.print_json("evalkit-curve", found.to_dict())
    else:
        print(curve.describe(found))
    return EXIT_DONE


def number(text: str) -> float:
    """``38.6G`` -> 38.6e9."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([kMGT]?)", text)
    try:
        return float(match[1]) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[match[2]]  # type: ignore[index]
    except (TypeError, ValueError):
        raise UsageError(f"--macs-per-view {text}: a number, such as --macs-per-view 38.6G") from None


def macs_per_view(score_set: ScoreSet) -> float | None:
    """Multiply-adds of a view: as the file says, else counted of the network in it; ``None`` where that fails."""
    if "macs_per_view" in score_set.meta:
        return float(score_set.meta["macs_per_view"])
    if not {"spec", "protocol"} <= score_set.meta.keys():
        return None
    from models import ModelSpec

    from ..protocols import Protocol

    row = score_set.meta["protocol"]
    protocol = Protocol(**{**row, "resize_px": tuple(row["resize_px"]) if row.get("resize_px") else None})
    found = _counted(lambda: ModelSpec.from_dict(score_set.meta["spec"]), protocol)
    return None if found is None else float(found.macs_per_view)


def macs_of_network(name: str, protocol: Protocol) -> float | None:
    """Multiply-adds of a video, of a network of models.toml by its name."""
    from models import cost

    found = _counted(lambda: cost.spec_of(name), protocol)
    return None if found is None else float(found.macs_per_view * found.num_views)


def _counted(spec: Callable[[], ModelSpec], protocol: Protocol) -> Cost | None:
    from models import cost

    try:
        return cost.cost(spec(), protocol)
    except (KitError, KeyError, TypeError, ValueError, RuntimeError) as error:
        log.warning("multiply-adds are not known: %s", error)
        return None
