from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from datakit.errors import DataError
from evalkit import metrics
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

SETS = ["rgb_logits", "flow_logits", "pose_logits", "rgb_prob", "flow_prob", "pose_prob"]
WITH_TIES = ["rgb_quantised_ties", "all_equal"]  # numpy's argsort decides their golden top-k: not a gate


@pytest.fixture(scope="module")
def numbers(golden: Path) -> dict[str, Any]:
    return dict(json.loads((golden / "mmaction2" / "metrics.json").read_text()))


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "mmaction2" / "metrics.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("name", SETS + WITH_TIES)
def test_numbers_of_the_original(name: str, numbers: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    want, scores, labels = numbers["single"][name], arrays[f"scores/{name}"], arrays["labels"]
    assert metrics.mean_class(scores, labels, "mmaction2") == pytest.approx(want["mean1"], abs=1e-12)
    assert metrics.mean_class(scores, labels) == pytest.approx(
        want["NOT_mmaction2_mean_over_classes_with_samples"], abs=1e-12
    )
    np.testing.assert_array_equal(metrics.confusion(scores, labels), arrays[f"confusion_full/{name}"])
    if name in SETS:
        found = [metrics.top_k(scores, labels, k) for k in (1, 2, 3, 10)]
        assert found == pytest.approx(want["topk_1_2_3_10"], abs=1e-12)
        assert metrics.top_k(scores, labels, 5) == pytest.approx(want["top5"], abs=1e-12)


def test_tiny_case_of_the_original(numbers: dict[str, Any]) -> None:
    tiny = numbers["tiny"]
    scores = np.eye(tiny["num_classes"])[tiny["scores_argmax"]]
    assert metrics.mean_class(scores, tiny["labels"], "mmaction2") == pytest.approx(0.5)
    assert metrics.mean_class(scores, tiny["labels"], "present") == pytest.approx(0.625)


def test_mean_class_is_scikit_learns(arrays: dict[str, np.ndarray]) -> None:
    labels = arrays["labels"]
    for name in SETS:
        predicted = metrics.predictions(arrays[f"scores/{name}"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about classes that are only predicted
            want = balanced_accuracy_score(labels, predicted)
        assert metrics.mean_class(arrays[f"scores/{name}"], labels) == pytest.approx(want, abs=1e-12)
        matrix = confusion_matrix(labels, predicted, labels=range(99))
        np.testing.assert_array_equal(metrics.confusion(arrays[f"scores/{name}"], labels), matrix)


def test_ties_go_to_the_lower_index() -> None:
    scores = np.array([[0.3, 0.3, 0.4], [0.5, 0.5, 0.0], [0.2, 0.2, 0.2]])
    assert metrics.ranks(scores, [1, 1, 2]).tolist() == [2, 1, 2]
    assert metrics.ranks(scores, [0, 0, 0]).tolist() == [1, 0, 0]
    assert metrics.predictions(scores).tolist() == [2, 0, 0]


coarse = st.sampled_from([0.0, 0.25, 0.5, np.nan, np.inf, -np.inf])


@given(st.data())
def test_rank_is_the_place_in_a_stable_sort(data: st.DataObject) -> None:
    num_clips, num_classes = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    scores = data.draw(hnp.arrays(np.float32, (num_clips, num_classes), elements=coarse))
    labels = data.draw(hnp.arrays(np.int64, num_clips, elements=st.integers(0, num_classes - 1)))
    found = metrics.ranks(scores, labels)
    for row, label, rank in zip(scores, labels, found, strict=True):
        if np.isnan(row).any():
            assert rank == metrics.NEVER
        else:
            order = sorted(range(num_classes), key=lambda index: (-row[index], index))
            assert rank == order.index(label)
    # top-1 and argmax agree, top-k grows with k, and ends at the rows that have a prediction
    assert ((metrics.predictions(scores) == labels) == (found == 0)).all()
    growing = [metrics.top_k(scores, labels, k) for k in range(1, num_classes + 3)]
    assert growing == sorted(growing)
    assert growing[-1] == pytest.approx(np.mean(~np.isnan(scores).any(axis=1)))


def test_bad_rows_are_wrong_at_every_k() -> None:
    scores = np.array([[np.nan, 0.9], [0.1, 0.9]])
    assert metrics.top_k(scores, [1, 1], 1) == 0.5
    assert metrics.top_k(scores, [1, 1], 9) == 0.5
    assert metrics.mean_class(scores, [0, 1], "mmaction2") == 0.5
    assert metrics.confusion(scores, [1, 1]).tolist() == [[0, 0], [0, 1]]


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="classes 0 to 1"):
        metrics.top_k(np.zeros((1, 2)), [2], 1)
    with pytest.raises(DataError, match="-1 to -1"):
        metrics.top_k(np.zeros((1, 2)), [-1], 1)
    with pytest.raises(DataError, match="class indices"):
        metrics.top_k(np.zeros((1, 2)), [0.5], 1)
    with pytest.raises(DataError, match=r"\(2,\)"):
        metrics.mean_class(np.zeros((1, 2)), [0, 1])
    with pytest.raises(ValueError, match="at least 1"):
        metrics.top_k(np.zeros((1, 2)), [0], 0)
    with pytest.raises(ValueError, match="present, mmaction2"):
        metrics.mean_class(np.zeros((1, 2)), [0], "macro")  # type: ignore[arg-type]


def make(labels: list[int], predicted: list[int], num_classes: int, **changes: Any) -> ScoreSet:
    scores = np.eye(num_classes, dtype=np.float32)[predicted]
    classes = tuple(f"class {index}" for index in range(num_classes))
    ids = [f"clip {index}" for index in range(len(labels))]
    values = {"ids": ids, "labels": np.array(labels), "scores": scores, "classes": classes, "kind": "prob"}
    return ScoreSet(**(values | {"signature": Signature(set="s")} | changes))


MISSING = [
    {"id": "x", "label": "class 1", "reason": "damaged"},
    {"id": "y", "label": "class 3", "reason": "empty"},
    {"id": "z", "label": None, "reason": "empty"},
]


def test_missing_clips_count_as_wrong_everywhere() -> None:
    found = make([0, 0, 1, -1], [0, 1, 1, 0], 6, missing=MISSING)
    wrong = metrics.summary(found)
    assert (wrong["n"], wrong["requested"], wrong["unlabelled"], wrong["counted"]) == (4, 7, 2, 5)
    assert wrong["top1"] == pytest.approx(2 / 5)
    assert wrong["top5"] == pytest.approx(3 / 5)
    assert wrong["top1_se"] == pytest.approx(np.sqrt(0.4 * 0.6 / 5))
    assert wrong["mean_class"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert wrong["classes"] == 3
    drop = metrics.summary(found, "drop")
    assert drop["top1"] == pytest.approx(2 / 3)
    assert drop["mean_class"] == pytest.approx((1 / 2 + 1) / 2)
    assert (drop["counted"], drop["classes"], drop["missing"]) == (3, 2, "drop")
    table = metrics.document(found)["per_class"]
    assert table[1] == {"class": "class 1", "n": 2, "top1": 0.5}
    assert table[3] == {"class": "class 3", "n": 1, "top1": 0.0}
    assert table[5] == {"class": "class 5", "n": 0, "top1": None}


def test_missing_clips_are_wrong_with_fewer_classes_than_k() -> None:
    found = metrics.summary(make([0, 1], [0, 0], 2, missing=MISSING[:1]))
    assert found["top5"] == pytest.approx(2 / 3)


def test_summary_agrees_with_the_plain_functions(arrays: dict[str, np.ndarray]) -> None:
    scores, labels = arrays["scores/rgb_logits"], arrays["labels"]
    found = ScoreSet(
        ids=[str(row) for row in range(200)],
        labels=labels,
        scores=scores,
        classes=tuple(map(str, range(99))),
        kind="logit",
        signature=Signature(),
    )
    for rule in ("present", "mmaction2"):
        numbers = metrics.summary(found, rule=rule)  # type: ignore[arg-type]
        assert numbers["top1"] == metrics.top_k(scores, labels, 1)
        assert numbers["top5"] == metrics.top_k(scores, labels, 5)
        assert numbers["mean_class"] == metrics.mean_class(scores, labels, rule)  # type: ignore[arg-type]
        assert numbers["mean_class_rule"] == rule
    assert metrics.summary(found)["classes"] == 60
    assert metrics.summary(found, rule="mmaction2")["classes"] == 80


def test_nothing_scored_is_said_and_not_invented() -> None:
    nothing = make([], [], 3)
    found = metrics.summary(nothing)
    assert [found[name] for name in ("top1", "top1_se", "top5", "mean_class", "mean_class_se")] == [None] * 5
    json.dumps(metrics.document(nothing), allow_nan=False)
    assert metrics.describe(found, nothing.signature).startswith("top-1       -\n")
    all_missing = metrics.summary(make([], [], 6, missing=MISSING))
    assert (all_missing["top1"], all_missing["mean_class"], all_missing["counted"]) == (0.0, 0.0, 2)


def test_one_clip_has_a_number_and_no_error_of_the_mean() -> None:
    found = metrics.summary(make([2], [2], 3))
    assert (found["top1"], found["mean_class"], found["mean_class_se"]) == (1.0, 1.0, None)


@pytest.mark.parametrize(
    ("sizes", "low", "high"),
    [
        ([50] * 20, 0.97, 1.03),
        ([2] * 200, 0.97, 1.03),
        ([1] * 200, 0.98, 1.20),  # never too small; larger where classes differ in difficulty
        ([1] * 100 + [3] * 50 + [40] * 10, 0.95, 1.20),
        ([1] + [10] * 30, 0.95, 1.10),
    ],
)
def test_error_of_the_mean_over_classes_is_its_spread(sizes: list[int], low: float, high: float) -> None:
    rng = np.random.default_rng(1)
    chance = np.repeat(rng.uniform(0.3, 0.95, len(sizes)), sizes)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    other = (labels + 1) % len(sizes)
    errors = []
    for _ in range(300):
        predicted = np.where(rng.random(len(labels)) < chance, labels, other)
        errors.append(metrics.summary(make(labels.tolist(), predicted.tolist(), len(sizes)))["mean_class_se"])
    size_of_clip = np.array(sizes)[labels]
    true = np.sqrt(np.sum(chance * (1 - chance) / size_of_clip**2)) / len(sizes)
    assert low < np.sqrt(np.mean(np.square(errors))) / true < high


def test_terminal_text() -> None:
    found = make([0, 0, 1, -1], [0, 1, 1, 0], 6, missing=MISSING)
    assert metrics.describe(metrics.summary(found), found.signature).splitlines() == [
        "top-1       40.00 ± 21.91",
        "top-5       60.00 ± 21.91",
        "mean class  33.33 ± 28.33  (present: 3 of 6 classes)",
        "scored      4 of 7 clips; 3 missing count as wrong; 2 without a label are in no number",
        f"signature   {found.signature}",
    ]
    few = make([0, 1, 2], [0, 1, 2], 3)
    assert "top-5       100.00 ± 0.00  (there are only 3 classes)" in metrics.describe(
        metrics.summary(few), few.signature
    )


def test_confused_pairs() -> None:
    labels = [0] * 10 + [1] * 4 + [2] * 4 + [3]
    predicted = [1] * 3 + [2] * 2 + [0] * 5 + [0, 0, 0, 1] + [3, 3, 2, 2] + [0]
    scores = np.eye(4)[predicted]
    found = metrics.confused(scores, labels)
    assert found == [(1, 0, 3, 0.75), (0, 1, 3, 0.3), (2, 3, 2, 0.5), (0, 2, 2, 0.2), (3, 0, 1, 1.0)]
    assert metrics.confused(scores, labels, most=2) == found[:2]
    assert metrics.confused(np.eye(4), [0, 1, 2, 3]) == []
    table = metrics.document(make(labels, predicted, 4))["confused"]
    assert table[0] == {"class": "class 1", "predicted": "class 0", "n": 3, "share": 0.75}


def test_intervals_are_seeded_and_hold_the_number() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, 400)
    predicted = np.where(rng.random(400) < 0.7, labels, (labels + 1) % 10)
    found = make(labels.tolist(), predicted.tolist(), 10)
    numbers, bounds = metrics.summary(found), metrics.intervals(found)
    assert bounds == metrics.intervals(found)
    assert bounds != metrics.intervals(found, seed=1)
    assert (bounds["unit"], bounds["num_units"], bounds["level"]) == ("clip", 400, 0.95)
    for key in ("top1", "mean_class"):
        low, high = bounds[key]
        assert low < numbers[key] < high
        assert (high - low) / 2 == pytest.approx(1.96 * numbers[f"{key}_se"], rel=0.1)
    assert metrics.document(found)["intervals"] == bounds
    lines = metrics.describe(numbers, found.signature, bounds).splitlines()
    assert lines[3].startswith(f"interval    95 %: top-1 {100 * bounds['top1'][0]:.2f} to ")


def test_intervals_at_the_ends() -> None:
    right = metrics.intervals(make([0, 1, 2] * 20, [0, 1, 2] * 20, 3))
    assert right["top1"][1] == 1.0
    assert 0.9 < right["top1"][0] < 1.0  # sixty clips without an error do not prove that there are none
    one = metrics.intervals(make([2], [2], 3))
    assert one["top1"] == (0.0, 1.0)
    nothing = metrics.intervals(make([], [], 3))
    assert (nothing["top1"], nothing["mean_class"]) == (None, None)


def test_classes_that_are_only_predicted_lower_the_interval_too() -> None:
    found = make([0, 1] * 30, [0, 2] * 30, 4)
    present = metrics.intervals(found)["mean_class"]
    union = metrics.intervals(found, rule="mmaction2")["mean_class"]
    assert union[0] < 1 / 3 < union[1]
    assert present[0] < 1 / 2 < present[1]


@pytest.mark.parametrize("metric", ["top1", "mean_class"])
def test_intervals_cover_what_is_true(metric: str) -> None:
    """Clips of one video are right or wrong together: intervals over clips miss the truth, those over videos do not."""
    rng = np.random.default_rng(5)
    num_videos, clips_each, num_classes = 40, 12, 4
    hits = {"clip": 0, "video": 0}
    for _ in range(120):
        chance = rng.beta(2, 1, num_videos).repeat(clips_each)  # mean 2/3
        labels = rng.integers(0, num_classes, num_videos * clips_each)
        predicted = np.where(rng.random(len(labels)) < chance, labels, (labels + 1) % num_classes)
        found = make(labels.tolist(), predicted.tolist(), num_classes)
        videos = {clip: str(number // clips_each) for number, clip in enumerate(found.ids)}
        for unit, groups in (("clip", None), ("video", videos)):
            low, high = metrics.intervals(found, groups=groups)[metric]
            hits[unit] += low <= 2 / 3 <= high
    assert hits["video"] >= 107  # of 120: 89 %; 95 % less four standard errors is 87 %
    assert hits["clip"] <= 95


def test_errors_over_videos() -> None:
    labels = [0, 1] * 40
    predicted = [label if number < 40 else 1 - label for number, label in enumerate(labels)]  # the first half is right
    found = make(labels, predicted, 2)
    alone = metrics.summary(found)
    videos = {clip: str(number // 20) for number, clip in enumerate(found.ids)}  # two right, two wrong
    together = metrics.summary(found, groups=videos)
    assert (together["unit"], together["num_units"], alone["unit"], alone["num_units"]) == ("video", 4, "clip", 80)
    assert together["top1"] == alone["top1"]
    assert together["top1_se"] == pytest.approx(np.sqrt(0.25 / 4), rel=0.05)
    assert alone["top1_se"] == pytest.approx(np.sqrt(0.25 / 80))
    assert "drawn       4 source videos, whose clips are not independent" in metrics.describe(together, found.signature)
    only_one = metrics.summary(found, groups=dict.fromkeys(found.ids, "same"))
    assert (only_one["top1_se"], only_one["num_units"]) == (None, 1)


def test_the_manifest_of_the_set_says_what_is_drawn() -> None:
    ids = [f"{video}_E_000001_000002_A_0001_00{number:02}" for video in "abc" for number in range(4)]
    found = make([0, 1] * 6, [0] * 12, 2, ids=ids, signature=Signature(set="gym99-val"))
    assert metrics.document(found)["num_units"] == 3
    assert metrics.document(found, groups="none")["num_units"] == 12
