from __future__ import annotations

import numpy as np
import pytest

from datakit import catalog, labels
from evalkit import metrics, orders
from evalkit.scores import ScoreSet
from evalkit.signature import Signature


def make(columns: tuple[str, ...], believed: tuple[str, ...], share: float = 0.7, seed: int = 0) -> ScoreSet:
    """A network right on ``share`` of the clips whose outputs are ``columns``, tested as if they were ``believed``."""
    rng = np.random.default_rng(seed)
    names = rng.choice(sorted(columns), 1200)
    guessed = np.where(rng.random(1200) < share, names, rng.choice(sorted(columns), 1200))
    place, told = ({name: number for number, name in enumerate(order)} for order in (columns, believed))
    scores = np.zeros((1200, len(columns)), np.float32)
    scores[np.arange(1200), [place[name] for name in guessed]] = 1
    return ScoreSet(
        ids=[f"clip {number}" for number in range(1200)], labels=np.array([told[name] for name in names]),
        scores=scores, classes=believed, kind="prob", signature=Signature(set="own-val"),
        missing=[{"id": "lost", "label": believed[3], "reason": "gone"}],
    )  # fmt: skip


@pytest.fixture(scope="module")
def kinetics() -> catalog.Dataset:
    found = catalog.dataset("k400")
    assert found is not None
    return found


def test_the_order_of_the_networks_outputs_is_found(kinetics: catalog.Dataset) -> None:
    ours, theirs = (labels.ordered(kinetics.classes, order, kinetics) for order in ("mmaction2", "uniformer"))
    wrong = make(theirs, ours)
    assert orders.at_chance(wrong)
    found = orders.guess(wrong)
    assert found is not None
    assert (found.orders, found.side) == (("uniformer",), "columns")
    right = make(theirs, theirs)
    assert found.top1 == metrics.summary(right, "drop")["top1"]
    assert orders.sentence(wrong).startswith(f"matches UniFormer's order: {100 * found.top1:.1f} instead of 0.")
    mended = orders.mended(wrong, found)
    assert mended.signature.list == wrong.signature.list  # the clips keep the names of their classes
    assert mended.missing == wrong.missing
    assert metrics.summary(mended, "drop")["mean_class"] == pytest.approx(metrics.summary(right, "drop")["mean_class"])


def test_the_order_of_the_labels_is_found(kinetics: catalog.Dataset) -> None:
    ours, theirs = (labels.ordered(kinetics.classes, order, kinetics) for order in ("mmaction2", "uniformer"))
    right = make(ours, ours)
    number = {name: place for place, name in enumerate(theirs)}
    numbered = ScoreSet(
        ids=right.ids, labels=np.array([number[name] for name in right.label_names()]), scores=right.scores,
        classes=ours, kind="prob", signature=right.signature,
    )  # fmt: skip
    found = orders.guess(numbered)
    assert found is not None
    assert (found.orders, found.side) == (("uniformer",), "labels")
    mended = orders.mended(numbered, found)
    assert mended.label_names() == right.label_names()
    assert found.top1 == metrics.summary(right, "drop")["top1"]


def test_classes_that_are_plain_numbers(kinetics: catalog.Dataset) -> None:
    ours, theirs = (labels.ordered(kinetics.classes, order, kinetics) for order in ("mmaction2", "uniformer"))
    named = make(theirs, ours)
    plain = ScoreSet(
        ids=named.ids, labels=named.labels, scores=named.scores, classes=tuple(map(str, range(400))), kind="prob",
        signature=named.signature,
    )  # fmt: skip
    found = orders.guess(plain)
    assert found is not None
    assert found.top1 == orders.guess(named).top1  # type: ignore[union-attr]


def test_a_good_run_and_a_hopeless_one(kinetics: catalog.Dataset) -> None:
    ours = labels.ordered(kinetics.classes, "mmaction2", kinetics)
    good = make(ours, ours)
    assert orders.sentence(good) == ""
    assert not orders.at_chance(good)
    hopeless = make(ours, ours, share=0.0)
    assert orders.guess(hopeless) is None
    assert "no known label order makes sense of it" in orders.sentence(hopeless)


def test_unknown_classes_have_no_orders() -> None:
    names = tuple(f"class {number}" for number in range(17))
    assert orders.guess(make(names, names[::-1])) is None
