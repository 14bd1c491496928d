from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datakit.errors import DataError, UsageError
from evalkit import __main__ as main
from evalkit import aggregate, curve, metrics, protocols, views
from evalkit.commands.curve import number
from evalkit.scores import ScoreSet
from evalkit.signature import Signature


def make(
    num_clips: int = 200, num_rows: int = 10, num_crops: int = 3, skill: float = 1.0, aggregation: str = "prob-mean",
    sampling: str = "mmaction2-0.x", seed: int = 0, **changes: Any,
) -> ScoreSet:  # fmt: skip
    """Views that are each right a little more often than not; their mean is right more often."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_clips) % 5
    logits = rng.normal(size=(num_clips, num_crops * num_rows, 5)) + rng.normal(size=(num_clips, 1, 5)) / 2
    logits[np.arange(num_clips), :, labels] += skill
    probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    kept = (logits if aggregate.views_hold(aggregation) == "logit" else probs).astype(np.float16)
    scores = np.stack([aggregate.aggregate(one, aggregation) for one in kept])
    values: dict[str, Any] = {
        "ids": [f"clip {number}" for number in range(num_clips)], "labels": labels, "scores": scores, "views": kept,
        "classes": tuple("abcde"), "kind": "prob",
        "signature": Signature(set="s", views=f"{num_rows}x{num_crops}@224", agg=aggregation, sampling=sampling),
        "meta": {
            "protocol": {
                "num_clips": num_rows, "num_crops": num_crops, "crop_px": 224, "sampling": sampling,
                "aggregation": aggregation, "options": {},
            },
            "views_hold": aggregate.views_hold(aggregation),
        },
    }  # fmt: skip
    return ScoreSet(**(values | changes))


@pytest.mark.parametrize("aggregation", ["prob-mean", "prob-max", "logit-mean", "prob-sum"])
def test_all_views_give_the_number_of_the_run(aggregation: str) -> None:
    scored = make(aggregation=aggregation)
    found = curve.of(scored)
    last = found.points[-1]
    summary = metrics.summary(scored)
    assert (last.top1, last.top5, last.mean_class) == pytest.approx(
        (summary["top1"], summary["top5"], summary["mean_class"]), abs=0.006
    )
    assert found.scored == summary["top1"]
    assert [(point.num_rows, point.num_crops) for point in found.points] == [
        (rows, crops) for crops in (1, 3) for rows in range(1, 11)
    ]


@pytest.mark.parametrize("aggregation", ["prob-mean", "prob-max", "logit-mean"])
def test_each_point_is_the_aggregation_of_its_views(aggregation: str) -> None:
    scored = make(num_clips=60, num_rows=4, aggregation=aggregation)
    assert scored.views is not None
    order = curve.spread(4)
    for point in curve.of(scored).points:
        crops = [2] if point.num_crops == 1 else [0, 1, 2]  # mmaction2's middle crop is its last
        numbers = [crop * 4 + row for crop in crops for row in order[: point.num_rows]]
        again = np.stack([aggregate.aggregate(one, aggregation) for one in scored.views[:, numbers]])
        assert point.top1 == pytest.approx(metrics.top_k(again, scored.labels, 1), abs=0.02)


def test_rows_are_nested_and_spread() -> None:
    for num_rows in (1, 2, 5, 10, 25):
        order = curve.spread(num_rows)
        assert sorted(order) == list(range(num_rows))
    order = curve.spread(10)
    assert order[0] in (4, 5)  # the middle first
    for count in range(1, 11):
        gaps = np.diff([-0.5, *sorted(order[:count]), 9.5])
        assert gaps.max() <= 2.2 * 10 / count


@pytest.mark.parametrize(("rule", "place"), [("mmaction2-0.x", 2), ("pyslowfast", 1)])
def test_the_centre_crop_is_found_by_the_rule(rule: str, place: int) -> None:
    assert curve.centre_crop({"num_crops": 3, "crop_px": 256, "sampling": rule}) == place
    boxes = views.crop_boxes(rule, 256, 340, 256, 3)
    assert boxes[place][1] == 42


def test_centre_of_ten_crops_is_the_unmirrored_one() -> None:
    assert curve.centre_crop({"num_crops": 10, "crop_px": 224, "sampling": "mmaction2-0.x"}) == 8
    tsn = protocols.get("tsn", "efficient")
    assert curve.centre_crop({"num_crops": tsn.num_crops, "crop_px": tsn.crop_px, "sampling": tsn.sampling}) == 0


def test_clips_of_fewer_rows_use_what_they_have() -> None:
    scored = make(num_clips=50, num_rows=4)
    assert scored.views is not None
    short = scored.views.copy()
    # clip 7 has two rows only: crop 0 row 0, 1, crop 1 row 0, 1, ... stand in front
    short[7, :6], short[7, 6:] = scored.views[7, [0, 1, 4, 5, 8, 9]], np.nan
    found = curve.of(replace(scored, views=short))
    only = ScoreSet(
        ids=["clip 7"], labels=scored.labels[7:8], scores=scored.scores[7:8], views=short[7:8, :6],
        classes=scored.classes,
        kind="prob", signature=scored.signature, meta=scored.meta,
    )  # fmt: skip
    without = curve.of(scored.select([row for row in range(50) if row != 7]))
    alone = curve.of(only)
    for crops in (1, 3):
        whole = [point.top1 for point in found.points if point.num_crops == crops]
        rest = [point.top1 for point in without.points if point.num_crops == crops]
        own = [point.top1 for point in alone.points if point.num_crops == crops]
        assert whole == pytest.approx([(49 * r + own[min(k, 1)]) / 50 for k, r in enumerate(rest)])


def test_more_views_help_and_chance_is_told_apart() -> None:
    found = curve.of(make(num_clips=3000, skill=0.5), macs_per_view=2e9)
    first, last = found.points[0], found.points[-1]
    assert first.change_high < 0
    assert last.top1 > first.top1 + 0.1
    assert first.top1_low < first.top1 < first.top1_high
    assert (first.macs, last.macs) == (2e9, 60e9)
    assert found.enough.num_views > 1
    later = [point for point in found.points if point.num_views >= found.enough.num_views]
    assert all(point.p >= 0.05 for point in later)
    assert found.enough.change_low <= 0 <= found.enough.change_high
    text = curve.describe(found)
    assert "5 of 10 clips are not the protocol that is named after 5 clips, whose clips start elsewhere" in text
    assert str(make(num_clips=3000).signature) in text


def test_one_point_beyond_its_interval_is_chance_among_many() -> None:
    found = curve.of(make(num_clips=300))
    last, before = found.points[-1], found.points[-2]
    points = [*found.points[:-2], replace(before, change=0.01, change_low=0.001, change_high=0.02, p=0.3), last]
    assert replace(found, points=tuple(points)).enough.num_views < before.num_views
    points[-2] = replace(points[-2], p=0.01)
    assert replace(found, points=tuple(points)).enough == last
    assert replace(found, points=tuple(points)).finding.startswith("All 30 views are needed")


def test_missing_clips_count_as_they_did_in_the_run() -> None:
    absent = [{"id": "lost", "label": "c", "reason": "gone"}]
    scored = make(num_clips=99, missing=absent)
    found = curve.of(scored)
    assert found.n == 100
    assert found.points[-1].top1 == pytest.approx(metrics.summary(scored)["top1"], abs=0.011)
    dropped = replace(scored, signature=replace(scored.signature, missing="drop"))
    assert curve.of(dropped).n == 99


def test_clips_of_one_video_are_drawn_together() -> None:
    scored = make(num_clips=120)
    groups = {clip_id: f"video {int(clip_id.split()[1]) % 6}" for clip_id in scored.ids}
    found = curve.of(scored, groups=groups)
    assert (found.unit, found.num_units) == ("video", 6)


def test_without_views_it_says_what_to_do() -> None:
    with pytest.raises(DataError, match="run again with --save-views"):
        curve.of(make(views=None))
    with pytest.raises(DataError, match="do not say how their views were made"):
        curve.of(make(meta={}))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(num_clips=40).save(tmp_path / "scores.npz")
    assert main.main(["curve", str(tmp_path / "scores.npz"), "--macs-per-view", "38.6G", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "evalkit-curve/1"
    assert len(document["points"]) == 20
    assert document["points"][-1]["macs"] == pytest.approx(30 * 38.6e9)
    assert document["signature"] == str(make(num_clips=40).signature)
    assert "whose clips start elsewhere" in " ".join(document["notes"])
    assert main.main(["curve", str(tmp_path)]) == 0
    assert "type --macs-per-view" in capsys.readouterr().out
    with pytest.raises(UsageError, match="such as --macs-per-view"):
        number("many")
