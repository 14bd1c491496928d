"""Does a number at chance level come from class numbers that are meant in another order?

Published networks and lists number the same classes differently. Scores keep what the network said, so each known order
can be tried on the file alone: either the columns are in that order, or the label numbers are.

    label number 2 means   our order: "archery"    their order: "zumba"
    column 2 means         our order: "archery"    their order: "zumba"
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import special

import manifests
from datakit import catalog, labels

from . import metrics
from .scores import ScoreSet

LEVEL = 0.01  # a result is told from chance at this level
LEAST_GAIN = 0.1  # of top-1: what an order must add before it is named; swaps of single classes add less

Side = Literal["columns", "labels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A known order that makes far better sense of a run. ``side``: what is numbered by it. Accuracies of 1."""

    data_set: str
    orders: tuple[str, ...]
    side: Side
    top1_before: float
    top1: float

    def __str__(self) -> str:
        """``matches UniFormer's order: 71.3 instead of 0.2``"""
        name = " or ".join(f"{_title(order)}'s" for order in self.orders)
        what = "the network's outputs are" if self.side == "columns" else "the labels are"
        return (
            f"matches {name} order: {100 * self.top1:.1f} instead of {100 * self.top1_before:.1f} "
            f"({what} numbered in it)"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "data_set": self.data_set, "orders": list(self.orders), "side": self.side,
            "top1_before": self.top1_before, "top1": self.top1, "sentence": str(self),
        }  # fmt: skip


def at_chance(score_set: ScoreSet) -> bool:
    """Whether top-1 of what was scored cannot be told from 1/C (exact binomial test, one-sided, at the 1 % level)."""
    _, _, found = metrics.outcomes(score_set, "drop")
    num, num_right, num_classes = len(found), int((found == 0).sum()), len(score_set.classes)
    if not num or num_classes < 2 or num_right == 0:
        return num > 0 and num_classes > 1
    return bool(special.bdtrc(num_right - 1, num, 1 / num_classes) > LEVEL)


def guess(score_set: ScoreSet) -> Guess | None:
    """The known order under which top-1 is highest, where that is at least ``LEAST_GAIN`` above what it is now."""
    before = _top1(score_set)
    if before is None:
        return None
    best: Guess | None = None
    for data_set, orders, side, columns, places in _known(score_set):
        top1 = _top1(renumbered(score_set, columns, places)) or 0.0
        if top1 >= before + LEAST_GAIN and (best is None or top1 > best.top1):
            best = Guess(data_set=data_set, orders=orders, side=side, top1_before=before, top1=top1)
    return best


def mended(score_set: ScoreSet, found: Guess) -> ScoreSet:
    """The same scores with their classes as the guess numbers them."""
    for data_set, orders, side, columns, places in _known(score_set):
        if (data_set, orders, side) == (found.data_set, found.orders, found.side):
            return renumbered(score_set, columns, places)
    raise ValueError(f"{found} is no guess about these scores")


def renumbered(score_set: ScoreSet, columns: tuple[str, ...], places: tuple[int, ...]) -> ScoreSet:
    """The same scores, where the columns are those of the classes ``columns`` and label number k is ``places[k]``."""
    moved = {name: columns[place] for name, place in zip(score_set.classes, places, strict=True)}
    return replace(
        score_set,
        classes=columns,
        labels=np.array([*places, -1])[score_set.labels],  # the last entry keeps -1 = no label
        missing=[{**entry, "label": entry["label"] and moved[entry["label"]]} for entry in score_set.missing],
    )


def sentence(score_set: ScoreSet) -> str:
    """What to say of a result that is at chance level, or that another order makes far better; "" of any other."""
    found = guess(score_set)
    if found:
        return str(found)
    if at_chance(score_set):
        return (
            f"at chance level (1 of {len(score_set.classes)} classes), and no known label order makes sense of it; "
            "are these the classes of the checkpoint?"
        )
    return ""


def _known(score_set: ScoreSet) -> Iterator[tuple[str, tuple[str, ...], Side, tuple[str, ...], tuple[int, ...]]]:
    """(data set, names of the order, what is numbered by it, names of the columns, label number -> column), each
    permutation once.

    Where the classes have names, one side is numbered as the file says; where they are plain numbers, each side may be
    numbered in any of the orders of any set of so many classes.
    """
    seen: set[tuple[int, ...]] = {tuple(range(len(score_set.classes)))}
    for name in manifests.names("datasets"):
        dataset = catalog.dataset(name)
        if dataset is None or dataset.num_classes != len(score_set.classes):
            continue
        official = dataset.classes or tuple(score_set.classes)
        named = set(official) == set(score_set.classes)
        if not named and not all(one.isdigit() for one in score_set.classes):
            continue
        orders: dict[tuple[str, ...], list[str]] = {}
        for order in (labels.OFFICIAL, *dataset.label_orders):
            orders.setdefault(labels.ordered(official, order, dataset), []).append(order)
        bases = [tuple(score_set.classes)] if named else list(orders)
        for base in bases:
            place = {one: number for number, one in enumerate(base)}
            for names_in_order, names in orders.items():
                column_of = {one: number for number, one in enumerate(names_in_order)}
                shown = tuple(one for one in names if one != labels.OFFICIAL) or tuple(names)
                tries: tuple[tuple[Side, tuple[str, ...], tuple[int, ...]], ...] = (
                    ("columns", names_in_order, tuple(column_of[one] for one in base)),
                    ("labels", base, tuple(place[one] for one in names_in_order)),
                )
                for side, columns, places in tries:
                    if places not in seen:
                        seen.add(places)
                        yield name, shown, side, columns, places


def _top1(score_set: ScoreSet) -> float | None:
    _, _, found = metrics.outcomes(score_set, "drop")
    return float((found == 0).mean()) if len(found) else None


def _title(order: str) -> str:
    """What the program whose order this is calls itself, where some manifest of copies says it."""
    for name in manifests.names("copies"):
        copies = manifests.read(f"copies/{name}")["copies"]
        if order in copies:
            return str(copies[order]["title"])
    return order
