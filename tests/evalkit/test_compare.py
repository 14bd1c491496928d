from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from datakit.errors import DataError, NotComparable, UsageError
from evalkit import compare as module
from evalkit import metrics
from evalkit.compare import compare, compare_all, describe, holm
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

BASE = Signature(set="s", labels="l", model="net", views="1x1@224", agg="prob-mean", media="m1", dec="pyav-18.1")


def make(
    right: np.ndarray | list[bool], num_classes: int = 10, signature: Signature = BASE, **changes: Any
) -> ScoreSet:
    """Clip i has label i % num_classes; where it is wrong the next class is predicted."""
    right = np.asarray(right)
    labels = np.arange(len(right)) % num_classes
    predicted = np.where(right, labels, (labels + 1) % num_classes)
    values: dict[str, Any] = {
        "ids": [f"clip {index}" for index in range(len(right))],
        "labels": labels,
        "scores": np.eye(num_classes, dtype=np.float32)[predicted],
        "classes": tuple(f"class {index}" for index in range(num_classes)),
        "kind": "prob",
        "signature": signature,
    }
    return ScoreSet(**(values | changes))


def pair(num_clips: int, only_a: int, only_b: int) -> tuple[ScoreSet, ScoreSet]:
    rng = np.random.default_rng(0)
    right_a, right_b = np.ones(num_clips, bool), np.ones(num_clips, bool)
    places = rng.permutation(num_clips)
    right_b[places[:only_a]] = False
    right_a[places[only_a : only_a + only_b]] = False
    return make(right_a), make(right_b)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("only_a", "only_b"), [(10, 30), (0, 5), (0, 6), (7, 7), (1, 0)])
def test_mcnemar_is_scipys_binomial_test(only_a: int, only_b: int) -> None:
    found = compare(*pair(200, only_a, only_b))
    assert (found.only_a, found.only_b, found.n) == (only_a, only_b, 200)
    assert found.test == "exact McNemar"
    assert found.p == pytest.approx(binomtest(only_b, only_a + only_b).pvalue)
    assert found.difference == pytest.approx((only_b - only_a) / 200)
    assert found.b - found.a == pytest.approx(found.difference)


@pytest.mark.parametrize("groups", [None, {f"clip {number}": str(number % 12) for number in range(59)}])
def test_interval_holds_0_where_the_test_finds_nothing(groups: dict[str, str] | None) -> None:
    found = compare(*pair(59, 0, 4), groups=groups)
    assert found.p >= 0.05
    assert found.low <= 0 <= found.high
    assert compare(*pair(59, 0, 9)).low > 0


def test_interval_of_top1_is_the_textbooks() -> None:
    found = compare(*pair(1000, 60, 100))
    error = np.sqrt((160 - 40**2 / 1000) / 1000 / 999)
    assert (found.low, found.high) == pytest.approx((0.04 - 1.96 * error, 0.04 + 1.96 * error), abs=0.06 * error)


def test_mean_class_weighs_classes_alike() -> None:
    # class 0 has 90 clips, class 1 ten: b gains 9 of class 0 (10 points of it) and loses 2 of class 1 (20 points).
    labels = np.repeat([0, 1], [90, 10])
    right_a, right_b = np.ones(100, bool), np.ones(100, bool)
    right_a[:9], right_b[90:92] = False, False
    scores_a, scores_b = (np.eye(2)[np.where(right, labels, 1 - labels)] for right in (right_a, right_b))
    a, b = (make(right_a, 2, labels=labels, scores=scores) for scores in (scores_a, scores_b))
    found = compare(a, b, metric="mean_class")
    assert found.difference == pytest.approx((0.1 - 0.2) / 2)
    assert found.a == metrics.summary(a)["mean_class"]
    assert found.test == "sign flips"
    # The exact p, over all 2**11 ways to give the signs:
    sizes = np.array([1 / 180] * 9 + [1 / 20] * 2)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 11)).reshape(11, -1)
    exact = np.mean(np.abs(sizes @ signs) >= abs(found.difference) - 1e-9)
    assert found.p == pytest.approx(exact, abs=0.02)
    assert compare(a, b).difference == pytest.approx(0.07)


def test_same_seed_same_numbers() -> None:
    a, b = pair(300, 20, 25)
    assert compare(a, b, metric="mean_class") == compare(a, b, metric="mean_class")
    other = compare(a, b, metric="mean_class", seed=1)
    assert other.low == pytest.approx(compare(a, b, metric="mean_class").low, abs=0.01)


def test_order_of_rows_and_classes_does_not_matter() -> None:
    a, b = pair(120, 9, 20)
    rng = np.random.default_rng(1)
    shuffled = b.select(rng.permutation(120)).in_class_order(tuple(rng.permutation(b.classes).tolist()))
    for metric in ("top1", "mean_class"):
        assert compare(a, shuffled, metric=metric) == compare(a, b, metric=metric)  # type: ignore[arg-type]


def test_a_wider_head_is_comparable() -> None:
    # A published 400-way head on 99 classes: the clips and their class names are the same.
    a, b = pair(50, 3, 4)
    wide = replace(b, classes=(*b.classes, "more", "still more"), scores=np.pad(b.scores, ((0, 0), (0, 2))))
    assert compare(a, wide).difference == pytest.approx(0.02)


def test_identical_sides() -> None:
    found = compare(*pair(100, 0, 0))
    assert (found.difference, found.p, found.differs) == (0, 1, False)
    assert found.low == pytest.approx(-found.high)
    assert found.high == pytest.approx(0.0295, abs=1e-3)  # the rule of three
    assert 0.05 < found.smallest < 0.06  # six clips of a hundred
    assert found.verdict == "a and b are right and wrong on the same 100 clips."


def test_missing_on_both_sides_is_wrong_on_both() -> None:
    a, b = pair(100, 2, 12)
    absent = [{"id": "lost", "label": "class 3", "reason": "empty"}]
    found = compare(replace(a, missing=absent), replace(b, missing=absent))
    assert found.n == 101
    assert found.a == pytest.approx(88 / 101)
    assert found.difference == pytest.approx(10 / 101)
    dropped = replace(replace(b, missing=absent), signature=replace(b.signature, missing="drop"))
    found = compare(replace(a, missing=absent), dropped)
    assert (found.n, found.b) == (100, pytest.approx(0.98))
    assert [part.key for part in found.how] == ["missing"]


def test_bounds_are_the_extremes_of_all_outcomes() -> None:
    # a lacks clips 0 (b right) and 1 (b wrong), b lacks 2 (a right), both lack "lost".
    labels = np.arange(12) % 3
    rights = np.ones((2, 12), bool)
    rights[0, [4, 5]] = rights[1, [1, 6]] = False
    absent = [{"id": "lost", "label": "class 2", "reason": "gone"}]
    full_a, full_b = (make(right, 3, missing=absent) for right in rights)
    a, b = full_a.select(list(range(2, 12))), full_b.select([0, 1, *range(3, 12)])
    for metric in ("top1", "mean_class"):
        found = compare(a, b, common=True, metric=metric)  # type: ignore[arg-type]
        assert (found.num_asked, found.num_unscored, found.n) == (13, 4, 9)
        classes = np.array([*labels, 2])
        share = np.array([1 / 13 if metric == "top1" else 1 / (3 * (classes == one).sum()) for one in classes])
        possible = []
        for bits in range(2**5):
            one, two = np.append(rights[0], True).astype(int), np.append(rights[1], True).astype(int)
            one[[0, 1, 12]] = [bits & 1, bits >> 1 & 1, bits >> 2 & 1]
            two[[2, 12]] = [bits >> 3 & 1, bits >> 4 & 1]
            possible.append(float((two - one) @ share))
        assert found.bounds == pytest.approx((min(possible), max(possible)))
    assert "bounds      however the 4 clips that one side or both could not score had come out" in describe(found)
    assert "bounds" not in describe(compare(*pair(9, 1, 1)))


def test_power_at_the_smallest_difference_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    num_clips, share = 400, 0.2
    for lead, want in ((0.0, 0.035), (0.0627, 0.80)):
        seen, smallest = [], []
        for _ in range(600):
            odds = [(share + lead) / 2, (share - lead) / 2, 1 - share]
            change = rng.choice([1, -1, 0], p=odds, size=num_clips) / num_clips
            seen.append(module._sign_test(change, rng) < 0.05)
            smallest.append(module._smallest(change))
        assert np.mean(smallest) == pytest.approx(0.0627, abs=0.003)
        assert np.mean(seen) == pytest.approx(want, abs=0.04)


def test_five_differing_clips_can_never_be_enough() -> None:
    found = compare(*pair(100, 0, 5))
    assert not found.differs
    assert found.smallest > found.difference


@pytest.mark.parametrize("metric", ["top1", "mean_class"])
def test_intervals_hold_the_truth_where_clips_share_videos(metric: Any) -> None:
    # 65 videos whose clips rise and fall together: the naive interval is far too short, the grouped one is not.
    rng = np.random.default_rng(3)
    group = np.arange(400) % 65
    groups = {f"clip {index}": f"video {video}" for index, video in enumerate(group)}
    held = {"naive": 0, "grouped": 0}
    false_alarms = 0
    for _ in range(70):
        chance = np.clip(0.6 + rng.normal(0, 0.3, (2, 65)), 0, 1)[:, group]
        a, b = (make(rng.random(400) < side) for side in chance)
        naive, grouped = compare(a, b, metric=metric), compare(a, b, metric=metric, groups=groups)
        held["naive"] += naive.low <= 0 <= naive.high
        held["grouped"] += grouped.low <= 0 <= grouped.high
        false_alarms += grouped.differs
    assert grouped.num_units == 65
    assert held["naive"] < 0.90 * 70
    assert held["grouped"] > 0.90 * 70
    assert false_alarms < 0.10 * 70


def test_intervals_hold_the_truth_with_classes_of_one_clip() -> None:
    rng = np.random.default_rng(4)
    labels = np.concatenate([np.arange(40), np.repeat(np.arange(40, 50), 20)])
    held = 0
    for _ in range(200):
        luck = rng.random(240)
        other = np.where(rng.random(240) < 0.7, luck, rng.random(240))
        sides = [make(right, 50, labels=labels) for right in (luck < 0.6, other < 0.65)]
        for side, right in zip(sides, (luck < 0.6, other < 0.65), strict=True):
            side.scores = np.eye(50, dtype=np.float32)[np.where(right, labels, (labels + 1) % 50)]
        found = compare(*sides, metric="mean_class")
        held += found.low <= 0.05 <= found.high
    assert held > 0.90 * 200


def test_twenty_thousand_clips_of_four_hundred_classes_take_seconds() -> None:
    rng = np.random.default_rng(0)
    a, b = (make(rng.random(20_000) < chance, 400) for chance in (0.75, 0.76))
    start = time.perf_counter()
    compare(a, b, metric="mean_class")
    assert time.perf_counter() - start < 15


# --- what may be compared --------------------------------------------------------------------------------------------


def test_other_clips_are_refused_unless_common_is_asked_for() -> None:
    a, b = pair(100, 5, 15)
    fewer = b.select(list(range(10, 100)))
    with pytest.raises(NotComparable) as error:
        compare(a, fewer, names=("mine", "theirs"))
    assert "n is 100 in mine and 90 in theirs" in str(error.value)
    assert f"list is {a.signature.list} in mine and {fewer.signature.list} in theirs" in str(error.value)
    assert str(error.value).endswith("on the 90 clips that both scored, type --common")
    found = compare(a, fewer, common=True)
    assert found.n == 90
    assert found.signatures[0] == found.signatures[1]
    assert "n:90|" in found.signatures[0]
    assert [part.key for part in found.what] == ["n", "list"]


def test_a_clip_missing_on_one_side_is_refused() -> None:
    a, b = pair(100, 5, 15)
    more = replace(b, missing=[{"id": "lost", "label": "class 3", "reason": "empty"}])
    with pytest.raises(NotComparable, match=r"only one of them was asked for 'lost'.*--common"):
        compare(a, more)
    assert compare(a, more, common=True).n == 100


def test_other_labels_are_refused_even_on_common_clips() -> None:
    a, b = pair(100, 5, 15)
    relabelled = b.labels.copy()
    relabelled[7] = 0
    changed = replace(b, labels=relabelled)
    with pytest.raises(NotComparable, match="list is"):
        compare(a, changed)
    with pytest.raises(NotComparable, match=r"disagree on the label of 1 clips \('clip 7'\)"):
        compare(a, changed, common=True)


@pytest.mark.parametrize("key", ["set", "labels", "metric"])
def test_every_part_of_what_counts(key: str) -> None:
    a, b = pair(50, 3, 3)
    b.signature = replace(b.signature, **{key: "other"})
    with pytest.raises(NotComparable, match=f"{key} is .* in a and other in b"):
        compare(a, b)
    assert [part.key for part in compare(a, b, common=True).what] == [key]


def test_no_shared_clip_is_said() -> None:
    a, b = pair(20, 1, 1)
    b.ids = [f"other {index}" for index in range(20)]
    b = replace(b)
    with pytest.raises(NotComparable, match="share no clip"):
        compare(a, b)
    with pytest.raises(NotComparable, match="share no clip"):
        compare(a, b, common=True)


def test_other_copies_are_refused_unless_asked_for() -> None:
    a, b = pair(100, 5, 15)
    b.signature = replace(b.signature, media="m2")
    with pytest.raises(NotComparable, match=r"media is m1 in a and m2 in b.*type --across-copies"):
        compare(a, b)
    found = compare(a, b, across_copies=True)
    assert [(part.a, part.b) for part in found.copy] == [("m1", "m2")]
    assert found.verdict.endswith("The files they scored are different copies.")
    b.signature = replace(b.signature, media="")
    with pytest.raises(NotComparable, match="media is m1 in a and not known in b"):
        compare(a, b)


def test_how_is_the_finding_and_with_is_a_caution() -> None:
    a, b = pair(100, 5, 15)
    b.signature = replace(b.signature, views="10x3@256", dec="torchcodec", dtype="bf16")
    found = compare(a, b)
    assert [part.key for part in found.how] == ["views"]
    assert [part.key for part in found.with_] == ["dec", "dtype"]
    text = describe(found)
    assert "how         views: 1x1@224 -> 10x3@256" in text
    assert "caution     dtype: not known -> bf16" in text


def test_unlabelled_sets_have_nothing_to_compare() -> None:
    a, b = pair(20, 1, 1)
    blank = np.full(20, -1)
    with pytest.raises(NotComparable, match="no clip that has a label"):
        compare(replace(a, labels=blank), replace(b, labels=blank))


def test_groups_must_name_every_clip() -> None:
    a, b = pair(20, 1, 1)
    with pytest.raises(DataError, match="no source video is given for 20 clips: 'clip 0', 'clip 1', 'clip 10' and 17"):
        compare(a, b, groups={})
    only_one = compare(a, b, groups=dict.fromkeys(a.ids, "video"))
    assert (only_one.num_units, only_one.low, only_one.high, only_one.p) == (1, -1, 1, 1)
    with pytest.raises(UsageError, match="--metric top1"):
        compare(a, b, metric="top5")  # type: ignore[arg-type]


# --- several, and in words -------------------------------------------------------------------------------------------


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_all_pairs_are_corrected_together() -> None:
    rng = np.random.default_rng(0)
    sets = [make(rng.random(400) < chance) for chance in (0.7, 0.7, 0.85)]
    found = compare_all(sets, ["x", "y", "z"])
    assert [pair.names for pair in found] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert [pair.p_holm for pair in found] == holm([pair.p for pair in found])
    assert [pair.differs for pair in found] == [False, True, True]
    assert found[1].verdict.startswith("z is better than x by ")
    assert "corrected for 3 comparisons" in found[1].verdict
    assert found[0].verdict.startswith("No difference beyond chance between x and y")
    assert "points would have been seen in 8 of 10 such tests." in found[0].verdict
    backwards = compare(sets[2], sets[0], names=("z", "x"))
    assert backwards.difference < 0
    assert backwards.verdict.startswith(
        f"z is better than x by {-100 * backwards.difference:.2f} points of top-1 (95 % "
    )
    assert f"interval {-100 * backwards.high:.2f} to {-100 * backwards.low:.2f}; p" in backwards.verdict
    json.dumps([pair.to_dict() for pair in found], allow_nan=False)
    with pytest.raises(UsageError, match="two score files"):
        compare_all(sets[:1], ["x"])


def test_terminal_text() -> None:
    found = compare(*pair(200, 10, 30), names=("runs/a", "runs/long"))
    assert describe(found).splitlines()[:6] == [
        "runs/a     top-1 85.00 ± 2.52",
        "runs/long  top-1 95.00 ± 1.54",
        f"difference  +10.00 points, 95 % interval {100 * found.low:+.2f} to {100 * found.high:+.2f}",
        "differing   10 clips only the first gets right, 30 only the second, of 200 clips",
        "test        exact McNemar: p = 0.0022",
        f"seen from   {100 * found.smallest:.2f} points (80 % power at the 5 % level)",
    ]
    assert module._p_text(3.2e-9) == "p < 1e-08"


# --- the files -------------------------------------------------------------------------------------------------------


def hashed(right: list[bool], files: list[str], **changes: Any) -> ScoreSet:
    return make(right, 2, signature=replace(BASE, media="320p"), files=files, **changes)


def test_parts_of_one_copy_are_one_copy() -> None:
    """With the hash of each file a part of a copy is known to be of it, and how many files are others."""
    whole = hashed([True] * 8, [f"{number:064d}" for number in range(8)])
    part = whole.select(range(6))
    found = compare(whole, part, common=True)
    assert (found.n, found.copy, found.copy_known, found.num_other_files) == (6, (), True, 0)
    renamed = replace(whole, signature=replace(BASE, media="my-folder"))
    assert renamed.signature.media != whole.signature.media
    assert compare(whole, renamed).copy == ()
    other = hashed([True] * 8, ["f" * 64, *(whole.files or [])[1:]])
    with pytest.raises(NotComparable, match=r"\(1 of 8 files differ\)"):
        compare(whole, other)
    found = compare(whole, other, across_copies=True)
    assert found.num_other_files == 1
    assert found.verdict.endswith("The files they scored are different copies: 1 of them differ.")


@pytest.mark.parametrize("media", ["", "foreign-unverified"])
def test_a_copy_that_nobody_knows_is_not_called_the_same(media: str) -> None:
    side = make([True, False], 2, signature=replace(BASE, media=media))
    found = compare(side, side)
    assert not found.copy_known
    assert found.verdict.endswith("Whether they scored the same copy of the files is not known.")


def test_what_could_be_seen_is_said_for_all_comparisons_together() -> None:
    rng = np.random.default_rng(3)
    sides = [make(rng.random(400) < 0.7) for _ in range(4)]
    alone, together = compare(*sides[:2]), compare_all(sides, "abcd")[0]
    assert (alone.num_comparisons, together.num_comparisons) == (1, 6)
    assert together.smallest > 1.2 * alone.smallest
    assert "8 of 10 such tests" in together.verdict
    refused: list[str] = []
    found = compare_all([*sides[:2], make([True])], "abc", refused=refused)
    assert [one.num_comparisons for one in found] == [1]
    assert found[0].smallest == alone.smallest
    assert len(refused) == 2


def test_a_fusion_looked_at_the_files_of_its_parts() -> None:
    part = make([True, True, False], signature=replace(BASE, media="256p-1"))
    fused = make([True, True, True], signature=replace(BASE, media="256p-1+flow-2"))
    assert compare(part, fused).copy == ()
    with pytest.raises(NotComparable, match="different copies"):
        compare(make([True, True, False], signature=replace(BASE, media="256p-3")), fused)
