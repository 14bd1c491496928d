"""Views into one row, against the originals' own averages; and stopping early, against scoring everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit import metrics, protocols
from evalkit.aggregate import aggregate, may_stop_early, views_hold, views_until_decided


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_rules_equal_the_originals(golden: Path) -> None:
    """mmaction2's average_clips="prob" of the views that its own networks gave."""
    with np.load(golden / "mmaction2" / "models" / "views.npz") as arrays:
        for name in ("slowonly_r50_4x16__30views", "slowfast_r50_4x16__6views", "tsm_r50_1x1x8__twice_x_3crops",
                     "tpn_slowonly_r50_8x8__3views_fcn"):  # fmt: skip
            rule = "segment-logit-mean" if name.startswith("tsm") else "prob-mean"
            row = aggregate(softmax(arrays[f"{name}/logits"].astype(np.float64)), rule)
            assert np.abs(row - arrays[f"{name}/avg_prob"][0]).max() < 1e-6, name
        name = "tsn_r50_1x1x3__25clips_x_3crops"
        row = aggregate(np.repeat(arrays[f"{name}/logits"], 3, axis=0), "logit-mean")
        assert np.abs(row - arrays[f"{name}/avg_prob"][0]).max() < 1e-6


def test_sums_and_maxima() -> None:
    views = softmax(np.random.default_rng(0).standard_normal((6, 4))).astype(np.float32)
    assert np.allclose(aggregate(views, "prob-sum"), views.sum(axis=0))
    assert np.array_equal(aggregate(views, "prob-max"), views.max(axis=0))
    assert aggregate(views, "prob-max").dtype == np.float32
    assert np.array_equal(aggregate(views[::-1], "prob-mean"), aggregate(views, "prob-mean"))
    with pytest.raises(ValueError, match="median"):
        aggregate(views, "median")
    assert {rule: views_hold(rule) for rule in protocols.AGGREGATIONS} == {
        "prob-mean": "prob", "prob-sum": "prob", "prob-max": "prob", "logit-mean": "logit",
        "segment-logit-mean": "prob",
    }  # fmt: skip


def test_only_means_of_probabilities_may_stop_early() -> None:
    base = protocols.get("slowonly", "accurate")
    may = {rule for rule in protocols.AGGREGATIONS if may_stop_early(replace(base, aggregation=rule))}
    assert may == {"prob-mean", "prob-sum", "segment-logit-mean"}


def stopped(views: np.ndarray, label: int) -> int:
    """How many views are looked at when the others are left out."""
    at = len(views) // 2 + 1
    while more := views_until_decided(views[:at].sum(axis=0, dtype=np.float64), label, len(views) - at):
        assert at + more <= len(views)
        at += more
    return at


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(1, 31), st.integers(2, 12), st.integers(0, 1 << 32), st.floats(0, 12), st.booleans())
def test_stopping_early_never_changes_a_decision(
    num_views: int, num_classes: int, seed: int, sharpness: float, known: bool
) -> None:
    random = np.random.default_rng(seed)
    common, own = random.standard_normal((1, num_classes)), random.standard_normal((num_views, num_classes))
    views = softmax(sharpness * (common + own)).astype(np.float32)
    label = int(random.integers(num_classes)) if known else -1
    part, whole = (aggregate(views[:count], "prob-mean") for count in (stopped(views, label), num_views))
    assert part.argmax() == whole.argmax()
    if known:
        at = np.array([label])
        for k in (1, 5):
            assert metrics.top_k(part[None], at, k) == metrics.top_k(whole[None], at, k)


@pytest.mark.parametrize("num_views", [30, 2000])
def test_a_decision_at_the_limit_stands_in_float32(num_views: int) -> None:
    """The views left out all speak for the one behind, whose lead in the end would be as small as it can be."""
    random = np.random.default_rng(num_views)
    for _ in range(300):
        at = int(random.integers(num_views // 2 + 1, num_views))
        views = np.zeros((num_views, 8))
        views[at:, 2] = 1
        lead = (num_views - at) * (1 + random.uniform(-2e-5, 3e-5)) + random.uniform(-1e-3, 1e-3) / num_views
        share = (1 + lead / at) / 2  # of the leader, class 3, in each view so far; class 2 has the rest
        if share > 1:
            continue
        views[:at, 3], views[:at, 2] = share, 1 - share
        if views_until_decided(views[:at].sum(axis=0), -1, num_views - at) == 0:
            assert aggregate(views, "prob-mean").argmax() == 3


def test_it_stops_as_soon_as_nothing_can_change_and_not_before() -> None:
    sure = np.zeros((10, 8), np.float32)
    sure[:, 3] = 1
    assert stopped(sure, 3) == 6  # 5 against 5 left would be a tie
    # The leader is certain, the label's place among eight equal ones is not: everything is looked at.
    close = np.full((10, 8), 0.1 / 7, np.float32)
    close[:, 3] = 0.9
    assert stopped(close, 0) == 10
    assert stopped(close, -1) < 10
    behind = views_until_decided(np.array([3.0, 3.0, 0.0]), -1, 24)
    assert behind == 13  # what one of them needs at the very least: 16 against 3 + 11


def test_the_hint_is_never_later_than_the_decision() -> None:
    random = np.random.default_rng(1)
    for _ in range(200):
        views = softmax(6 * random.standard_normal((20, 9)))
        label = int(random.integers(9))
        first = next(at for at in range(1, 21) if views_until_decided(views[:at].sum(axis=0), label, 20 - at) == 0)
        at = 11
        assert first >= at
        while more := views_until_decided(views[:at].sum(axis=0), label, 20 - at):
            at += more
        assert at == first
