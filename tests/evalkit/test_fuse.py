from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datakit.errors import DataError, NotComparable, UsageError
from evalkit import metrics, scores
from evalkit.fuse import fuse, mixtures_of, search, search_on, softmax, with_search
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

RGB = Signature(set="s", labels="l", model="net", input="rgb", agg="prob-mean", weights="aaaa", media="m1")
FLOW = Signature(set="s", labels="l", model="net", input="flow", agg="prob-mean", weights="bbbb", media="m2")


def make(seed: int = 0, signature: Signature = RGB, **changes: Any) -> ScoreSet:
    values: dict[str, Any] = {
        "ids": ["a", "b", "c", "d"],
        "labels": np.array([0, 1, 2, 1]),
        "scores": softmax(np.random.default_rng(seed).normal(size=(4, 3))),
        "classes": ("x", "y", "z"),
        "kind": "prob",
        "signature": signature,
    }
    return ScoreSet(**(values | changes))


@pytest.fixture(scope="module")
def cases(golden: Path) -> dict[str, Any]:
    return dict(json.loads((golden / "mmaction2" / "metrics.json").read_text())["fusion"])


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "mmaction2" / "metrics.npz", allow_pickle=False) as file:
        return dict(file)


def test_numbers_of_the_original(cases: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    classes = tuple(f"class {index}" for index in range(99))
    labels = arrays["labels"]
    rng = np.random.default_rng(0)
    refused = []
    for name, case in cases.items():
        parts = []
        for key in case["inputs"]:
            kind: Any = "logit" if key.endswith("logits") else "prob"
            part = ScoreSet(
                ids=[f"clip {row}" for row in range(200)],
                labels=labels,
                scores=arrays[f"scores/{key}"],
                classes=classes,
                kind=kind,
                signature=Signature(model=key),
            )
            # rows and columns in an order of their own: the join must undo it
            shuffled = part.select(rng.permutation(200)).in_class_order(tuple(rng.permutation(classes).tolist()))
            parts.append(shuffled if parts else part)
        if len({part.kind for part in parts}) > 1:
            refused.append(name)
            with pytest.raises(NotComparable, match="logits with probabilities"):
                fuse(parts, case["coefficients"])
            continue
        on: Any = "prob" if case["apply_softmax"] or parts[0].kind == "prob" else "logit"
        found = fuse(parts, case["coefficients"], on)
        np.testing.assert_allclose(found.scores, arrays[f"fused/{name}"], rtol=1e-6, atol=1e-9)
        assert found.scores.dtype == np.float64
        assert found.kind == on
        assert metrics.top_k(found.scores, found.labels, 1) == case["top1"]
        assert metrics.top_k(found.scores, found.labels, 5) == case["top5"]
        assert metrics.mean_class(found.scores, found.labels, "mmaction2") == pytest.approx(case["mean1"], abs=1e-12)
    assert refused == ["rgb_prob+flow_logits@1:1"]


def test_order_of_rows_and_classes_does_not_matter() -> None:
    rgb, flow = make(0), make(1, FLOW)
    straight = fuse([rgb, flow], (1, 1.5))
    shuffled = fuse([rgb, flow.select([2, 0, 3, 1]).in_class_order(("z", "x", "y"))], (1, 1.5))
    np.testing.assert_array_equal(straight.scores, shuffled.scores)
    np.testing.assert_allclose(straight.scores, rgb.scores + 1.5 * flow.scores.astype(np.float64))
    assert straight.ids == rgb.ids
    assert straight.signature == shuffled.signature
    assert straight.signature.list == rgb.signature.list


def test_signature_and_parts_are_kept(tmp_path: Path) -> None:
    rgb, flow = make(0), make(1, FLOW)
    found = fuse([rgb, flow], (1, 1.5))
    assert str(found.signature) == (
        f"set:s|n:4|list:{rgb.signature.list}|labels:l|metric:top1,top5,mean_class-present|model:net|input:rgb+flow"
        "|agg:prob-mean,fuse-prob(1:1.5)|missing:wrong|weights:aaaa+bbbb|media:m1+m2"
    )
    found.save(tmp_path / "scores.npz")
    assert scores.load(tmp_path).meta["fused"] == [
        {"weight": 1, "signature": str(rgb.signature)},
        {"weight": 1.5, "signature": str(flow.signature)},
    ]


def test_missing_in_either_is_missing() -> None:
    rgb = make(0).select([0, 1, 2])
    rgb.missing = [{"id": "d", "label": "y", "reason": "damaged"}, {"id": "e", "label": None, "reason": "empty"}]
    flow = make(1, FLOW).select([3, 2, 0])
    flow.missing = [{"id": "b", "label": None, "reason": "no flow"}, {"id": "e", "label": "z", "reason": "no flow"}]
    found = fuse([rgb, flow])
    assert found.ids == ["a", "c"]
    assert found.missing == [
        {"id": "d", "label": "y", "reason": "part 1: damaged"},
        {"id": "e", "label": "z", "reason": "part 1: empty; part 2: no flow"},
        {"id": "b", "label": "y", "reason": "part 2: no flow"},
    ]
    assert metrics.summary(found)["counted"] == 5


def test_three_streams() -> None:
    parts = [make(seed) for seed in range(3)]
    found = fuse(parts, (2, 1.5, 0.5))
    want = sum(weight * part.scores.astype(np.float64) for weight, part in zip((2, 1.5, 0.5), parts, strict=True))
    np.testing.assert_allclose(found.scores, want)


def test_softmax_of_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([[1e4, 1e4 - np.log(3)], [0.0, -1e5]])), [[0.75, 0.25], [1, 0]])


def test_different_clips_are_refused_by_name() -> None:
    other = make(1, FLOW, ids=["a", "b", "q", "r"])
    with pytest.raises(NotComparable) as error:
        fuse([make(0), other])
    assert "2 are in both; 2 only in part 1: 'c', 'd'; 2 only in part 2: 'q', 'r'" in str(error.value)


def test_different_labels_are_refused_by_name() -> None:
    other = make(1, FLOW, labels=np.array([0, 2, 2, 1]))
    with pytest.raises(NotComparable, match="label of 1 clips: 'b'; 'b' is 'y' in part 1 and 'z' in part 2"):
        fuse([make(0), other])
    unlabelled = make(1, FLOW, labels=np.array([0, -1, 2, 1]))
    with pytest.raises(NotComparable, match="'without label' in part 2"):
        fuse([make(0), unlabelled])


def test_different_classes_are_refused_by_name() -> None:
    with pytest.raises(NotComparable, match=r"part 2 \(net\) and part 1 cannot be fused.*only here: 'w'"):
        fuse([make(0), make(1, FLOW, classes=("x", "y", "w"))])


def test_scores_of_another_kind_are_refused() -> None:
    with pytest.raises(NotComparable, match="prob and logit"):
        fuse([make(0), make(1, FLOW, kind="logit")])
    with pytest.raises(NotComparable, match="leave out --on logit"):
        fuse([make(0), make(1, FLOW)], on="logit")
    with pytest.raises(NotComparable, match=r"part 2 \(net\) holds partial scores"):
        fuse([make(0), make(1, FLOW, meta={"partial": True})])


@pytest.mark.parametrize("weights", [(1,), (1, 1, 1), (0, 0), (1, float("nan")), (1, float("inf"))])
def test_wrong_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"--weights 1:1$"):
        fuse([make(0), make(1, FLOW)], weights)


def test_one_part_is_no_fusion() -> None:
    with pytest.raises(UsageError, match="two score files"):
        fuse([make(0)])


def test_set_names_that_differ_are_both_kept() -> None:
    found = fuse([make(0), make(1, replace(FLOW, set="t"))])
    assert found.signature.set == "s+t"


def streams(
    seed: int, num_clips: int = 300, strengths: tuple[float, ...] = (3.0, 1.0), prefix: str = "clip"
) -> list[ScoreSet]:
    """Streams that are right to different degrees and independently; clips come in tens of one video."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, num_clips)
    parts = []
    for number, strength in enumerate(strengths):
        logits = rng.normal(size=(num_clips, 6))
        logits[np.arange(num_clips), labels] += strength
        parts.append(
            ScoreSet(
                ids=[f"{prefix} {row:04}" for row in range(num_clips)],
                labels=labels,
                scores=softmax(logits),
                classes=tuple("abcdef"),
                kind="prob",
                signature=Signature(set=f"{prefix}s", input=f"stream {number}"),
            )
        )
    return parts


def test_mixtures() -> None:
    assert len(mixtures_of(2)) == 21
    for num_parts in range(2, 7):
        found = mixtures_of(num_parts)
        assert len(set(found)) == len(found) < 300
        np.testing.assert_allclose(np.sum(found, axis=1), 1)
    with pytest.raises(UsageError, match="2 to 6 streams"):
        mixtures_of(7)


def test_search_finds_the_best_of_the_mixtures() -> None:
    parts = streams(0)
    found = search(parts)
    tried = {weights: metrics.summary(fuse(parts, weights))["top1"] for weights in mixtures_of(2)}
    assert found.optimistic == max(tried.values()) == tried[found.weights]
    assert found.weights[0] > found.weights[1]  # the first stream is the better one
    assert found.equal == metrics.summary(fuse(parts))["top1"]
    assert found.num_mixtures == 21
    assert len(found.chosen_a_fold) == 10


def test_search_does_not_depend_on_the_order_of_rows() -> None:
    parts = streams(1)
    shuffled = [part.select(np.random.default_rng(number).permutation(300)) for number, part in enumerate(parts)]
    assert search(parts) == search(shuffled)


def test_ties_go_to_equal_weights() -> None:
    parts = streams(2, strengths=(60.0, 60.0))  # right under every mixture
    assert search(parts).weights == (0.5, 0.5)


def test_what_chose_the_weights_is_too_high_and_cross_validation_is_not() -> None:
    """Six streams of chance: whatever is chosen among 126 mixtures is chance, and looks better on its own clips."""
    found = [search(streams(seed, 60, (0.0,) * 6)) for seed in range(30)]
    optimistic = np.mean([one.optimistic for one in found])
    honest = np.mean([one.cross_validated for one in found])
    assert optimistic > 1 / 6 + 0.06
    assert abs(honest - 1 / 6) < 0.035  # 30 x 60 clips: one standard error is 0.009


def test_folds_keep_videos_together() -> None:
    parts = streams(3)
    videos = {clip: str(row // 10) for row, clip in enumerate(parts[0].ids)}
    found = search(parts, groups=videos)
    assert found.unit == "video"
    assert len(found.chosen_a_fold) == 10
    two = {clip: str(row // 150) for row, clip in enumerate(parts[0].ids)}
    halves = [part.select(list(range(150 * half, 150 * half + 150))) for half in (0, 1) for part in parts]
    both = search(parts, groups=two)
    assert len(both.chosen_a_fold) == 2
    picked = {search(halves[:2]).weights, search(halves[2:]).weights}
    assert set(both.chosen_a_fold) == picked
    with pytest.raises(DataError, match="two videos or more, there is 1"):
        search(parts, groups=dict.fromkeys(parts[0].ids, "same"))


def test_missing_clips_are_wrong_under_all_weights() -> None:
    parts = streams(4)
    lost = [{"id": "lost", "label": "a", "reason": "gone"}]
    with_lost = [replace(part, missing=lost) for part in parts]
    all_there, fewer = search(parts), search(with_lost)
    assert fewer.optimistic == pytest.approx(all_there.optimistic * 300 / 301)
    assert fewer.cross_validated == pytest.approx((all_there.cross_validated or 0) * 300 / 301)
    dropped = [replace(part, signature=replace(part.signature, missing="drop")) for part in with_lost]
    assert search(dropped).optimistic == pytest.approx(all_there.optimistic)


def test_weights_of_another_split() -> None:
    train, val = streams(5, prefix="train"), streams(6)
    found = search_on(train, val)
    assert found.weights == search(train).weights
    assert (found.cross_validated, found.chosen_on) == (None, "trains")
    assert with_search(fuse(val, found.weights), found).signature == fuse(val, found.weights).signature
    with pytest.raises(UsageError, match="300 clips are among those that are counted"):
        search_on(val, val)
    with pytest.raises(UsageError, match="1 score files for 2 streams"):
        search_on(train[:1], val)
    unlabelled = [replace(part, labels=np.full(300, -1)) for part in train]
    with pytest.raises(DataError, match="no clip has a label"):
        search_on(unlabelled, val)


def test_a_search_is_said_wherever_its_numbers_are() -> None:
    parts = streams(7)
    found = search(parts)
    fused = with_search(fuse(parts, found.weights), found)
    assert fused.signature.agg.endswith(",weights-chosen-on-these-clips")
    assert fused.meta["search"]["cross_validated"] == found.cross_validated
    assert len(fused.meta["fused"]) == 2
