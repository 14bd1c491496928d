from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datakit import catalog, labels
from datakit.errors import NotComparable, UsageError
from evalkit import __main__ as main
from evalkit import aggregate, curve, metrics
from evalkit.scores import ScoreSet
from evalkit.signature import Signature
from evalkit.why import Part, Why, describe, why

BASE = Signature(
    set="s", labels="l", model="net", clip="8x8", views="10x3@256", sampling="mmaction2-0.x", resize="256-cv2",
    input="rgb", agg="prob-mean", weights="w", media="m1", dec="pyav-18.1",
)  # fmt: skip


def make(
    num_clips: int = 300, num_rows: int = 10, num_crops: int = 3, *, aggregation: str = "prob-mean",
    rows: list[int] | None = None, crops: list[int] | None = None, keep: bool = True, seed: int = 0,
    signature: Signature = BASE, **changes: Any,
) -> ScoreSet:  # fmt: skip
    """A run whose views are always the same ones; ``rows`` and ``crops`` are those that this run looked at."""
    rng = np.random.default_rng(seed)
    classes = np.arange(num_clips) % 6
    logits = 2 * rng.normal(size=(num_clips, num_crops, num_rows, 6))
    logits += 2 * np.linspace(1, 2, num_clips)[:, None, None, None] * np.linspace(0.3, 1, num_crops)[:, None, None] * (
        np.arange(6) == classes[:, None, None, None]
    )  # fmt: skip
    taken = logits[:, crops or list(range(num_crops))][:, :, rows or list(range(num_rows))]
    flat = taken.reshape(num_clips, -1, 6)
    probs = np.exp(flat) / np.exp(flat).sum(axis=2, keepdims=True)
    kept = (flat if aggregate.views_hold(aggregation) == "logit" else probs).astype(np.float16)
    size = (taken.shape[2], taken.shape[1])
    values: dict[str, Any] = {
        "ids": [f"clip {number}" for number in range(num_clips)], "labels": classes,
        "scores": np.stack([aggregate.aggregate(one, aggregation) for one in kept]), "views": kept if keep else None,
        "classes": tuple("abcdef"), "kind": "prob",
        "signature": replace(signature, views=f"{size[0]}x{size[1]}@256", agg=aggregation),
        "meta": {
            "protocol": {
                "num_clips": size[0], "num_crops": size[1], "crop_px": 256, "sampling": "mmaction2-0.x",
                "aggregation": aggregation, "options": {},
            }
        },
    }  # fmt: skip
    return ScoreSet(**(values | changes))


def top1(score_set: ScoreSet) -> float:
    return float(metrics.summary(score_set)["top1"])


def part(found: Why, factor: str) -> Part:
    parts = [one for one in found.parts if one.factor == factor]
    assert len(parts) == 1, [one.factor for one in found.parts]
    return parts[0]


def total(found: Why) -> float:
    return sum(one.points or 0 for one in (*found.parts, found.remaining))


def test_views_and_crops_are_rescored() -> None:
    accurate = make()
    one_row, centre = [curve.spread(10)[0]], [2]
    efficient = make(rows=one_row, crops=centre, keep=False)
    rows_only = make(rows=one_row, keep=False)
    found = why(efficient, accurate)
    assert found.difference == pytest.approx(top1(accurate) - top1(efficient))
    assert part(found, "views").points == pytest.approx(top1(accurate) - top1(rows_only))
    assert part(found, "crop").points == pytest.approx(top1(rows_only) - top1(efficient))
    assert (part(found, "views").a, part(found, "views").b) == ("1 clip", "10 clips")
    assert found.remaining.points == pytest.approx(0)
    assert total(found) == pytest.approx(found.difference)
    views = part(found, "views")
    assert views.points is not None
    assert views.low is not None
    assert views.low < views.points < (views.high or 0)
    backwards = why(accurate, efficient)
    assert part(backwards, "views").points == pytest.approx(-(views.points or 0))
    assert total(backwards) == pytest.approx(-found.difference)


def test_without_views_it_says_what_is_needed() -> None:
    found = why(make(rows=[4], crops=[2], keep=False), make(keep=False), names=("mine", "theirs"))
    assert part(found, "views").how == "not known"
    assert part(found, "views").note == "needs the views of theirs: score it again with --save-views"
    assert found.remaining.points == pytest.approx(found.difference)
    assert found.remaining.note == "views, crop differ and cannot be told apart from these files"


@pytest.mark.parametrize(
    ("first", "second"), [("prob-mean", "prob-max"), ("logit-mean", "prob-mean"), ("prob-mean", "logit-mean")]
)
def test_aggregation_is_applied_again(first: str, second: str) -> None:
    a, b = make(aggregation=first), make(aggregation=second, keep=False)
    found = why(a, b)
    assert part(found, "aggregation").how == "rescored"
    assert part(found, "aggregation").points == pytest.approx(found.difference, abs=0.004)  # float16
    assert found.remaining.points == pytest.approx(0, abs=0.004)


def test_missing_clips_are_counted() -> None:
    full = make(keep=False)
    lost = [{"id": clip_id, "label": full.classes[label], "reason": "gone"}
            for clip_id, label in zip(full.ids[:15], full.labels[:15], strict=True)]  # fmt: skip
    fewer = replace(full.select(list(range(15, 300))), missing=lost)
    found = why(full, fewer)
    rest = top1(replace(fewer, missing=[]))
    assert part(found, "missing clips").points == pytest.approx(top1(fewer) - rest)
    assert (part(found, "missing clips").a, part(found, "missing clips").b) == ("none", "15 count as wrong")
    assert part(found, "list").points == pytest.approx(rest - top1(full))
    assert found.n == 285
    assert found.remaining.points == pytest.approx(0)
    assert total(found) == pytest.approx(found.difference)


def test_other_lists() -> None:
    full = make(keep=False)
    a, b = full.select(list(range(200))), full.select(list(range(100, 300)))
    found = why(a, b)
    assert found.n == 100
    assert part(found, "list").points == pytest.approx(top1(b) - top1(a))
    assert part(found, "list").a == "200 clips, 100 of them not in the other"
    assert found.remaining.points == pytest.approx(0)


def test_other_labels_of_the_same_clips() -> None:
    a = make(keep=False)
    changed = a.labels.copy()
    changed[:30] = (changed[:30] + 1) % 6
    b = replace(a, labels=changed)
    found = why(a, b)
    assert part(found, "labels").points == pytest.approx(top1(b) - top1(a))
    assert "30 of the clips" in part(found, "labels").note
    assert found.remaining.points == pytest.approx(0)


@pytest.mark.parametrize(
    ("key", "factor"), [("media", "copy"), ("sampling", "sampling rule"), ("weights", "weights"), ("resize", "resize")]
)
def test_the_only_difference_left_explains_the_rest(key: str, factor: str) -> None:
    a, b = make(keep=False), make(keep=False, seed=1)
    b.signature = replace(b.signature, **{key: "other"})
    b.signature = replace(b.signature, dec="another program")
    found = why(a, b)
    only = part(found, factor)
    assert (only.how, only.b) == ("left over", "other")
    assert only.points == pytest.approx(found.difference)
    assert found.remaining.points == 0
    both = replace(b, signature=replace(b.signature, model="other"))
    assert why(a, both).remaining.points == pytest.approx(found.difference)


def test_every_factor_that_is_asked_about_has_a_line() -> None:
    found = why(make(), make())
    assert {one.factor for one in found.parts} >= {
        "copy", "missing clips", "sampling rule", "views", "crop", "aggregation", "label order", "list"
    }  # fmt: skip
    assert all(one.how == "same" for one in found.parts)
    assert found.finding == "There is no difference"


def test_label_order_is_put_right_first() -> None:
    dataset = catalog.dataset("k400")
    assert dataset is not None
    ours, theirs = (labels.ordered(dataset.classes, order, dataset) for order in ("mmaction2", "uniformer"))
    rng = np.random.default_rng(0)
    truth, luck = rng.integers(0, 400, 900), rng.random(900)
    guessed = np.where(luck < 0.7, truth, rng.integers(0, 400, 900))
    a = ScoreSet(
        ids=[f"clip {number}" for number in range(900)], labels=truth, scores=np.eye(400, dtype=np.float32)[guessed],
        classes=ours, kind="prob", signature=BASE,
    )  # fmt: skip
    column = {name: place for place, name in enumerate(theirs)}
    mixed = np.array([column[name] for name in ours])
    b = replace(a, scores=np.eye(400, dtype=np.float32)[mixed[guessed]])  # the network's outputs are in their order
    found = why(a, b, names=("a", "b"))
    assert part(found, "label order").points == pytest.approx(found.difference)
    assert found.remaining.points == pytest.approx(0)
    assert any("matches UniFormer's order: 7" in text for text in found.remarks)
    assert "come from the label order" in found.finding


def test_mean_class_and_source_videos() -> None:
    a, b = make(keep=False), make(keep=False, seed=1)
    b.signature = replace(b.signature, weights="other")
    groups = {clip_id: f"video {int(clip_id.split()[1]) % 9}" for clip_id in a.ids}
    found = why(a, b, metric="mean_class", groups=groups)
    numbers = [float(metrics.summary(side)["mean_class"]) for side in (a, b)]
    assert found.difference == pytest.approx(numbers[1] - numbers[0])
    assert part(found, "weights").points == pytest.approx(found.difference)
    with pytest.raises(UsageError, match="--metric top1"):
        why(a, b, metric="top5")  # type: ignore[arg-type]
    with pytest.raises(NotComparable, match="share no clip"):
        why(a, replace(b, ids=[f"x{one}" for one in b.ids]))


def test_twenty_thousand_clips_take_seconds() -> None:
    labels_ = np.arange(20_000) % 6
    rights = np.random.default_rng(0).random((2, 20_000)) < 0.7
    a, b = (
        ScoreSet(
            ids=[f"clip {number}" for number in range(20_000)], labels=labels_,
            scores=np.eye(6, dtype=np.float32)[np.where(right, labels_, (labels_ + 1) % 6)],
            classes=tuple("abcdef"), kind="prob", signature=replace(BASE, weights=str(right.sum())),
        )
        for right in rights
    )  # fmt: skip
    start = time.process_time()
    assert total(found := why(a, b)) == pytest.approx(found.difference)
    assert time.process_time() - start < 10


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make().save(tmp_path / "a" / "scores.npz")
    make(rows=[4], crops=[2], keep=False).save(tmp_path / "b" / "scores.npz")
    assert main.main(["why", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "evalkit-why/1"
    parts = [*document["parts"], document["remaining"]]
    assert sum(one["points"] or 0 for one in parts) == pytest.approx(document["difference"])
    assert len(document["signatures"]) == 2
    assert main.main(["why", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert "factor" in text
    assert describe(why(make(), make(seed=1))).count("\nsignature   ") == 2


def test_how_much_the_order_matters_is_said() -> None:
    """Views and crop together: whichever is taken first, the two add up, and both ways are told."""
    full, one = make(seed=1), make(rows=[4], crops=[2], keep=False, seed=1)
    found = why(one, full)
    parts = {part.factor: part for part in found.parts}
    for part in (parts["views"], parts["crop"]):
        assert part.least is not None
        assert part.most is not None
        assert part.least < part.most
        assert part.least - 1e-9 <= (part.points or 0) <= part.most + 1e-9
    other_way = (
        (parts["views"].least or 0) + (parts["crop"].most or 0),
        (parts["views"].most or 0) + (parts["crop"].least or 0),
    )
    assert other_way == pytest.approx([(parts["views"].points or 0) + (parts["crop"].points or 0)] * 2)
    assert "taken in other orders" in describe(found)
    assert {part.least for part in why(make(rows=[4], keep=False), full).parts} == {None}


def test_copies_are_told_by_the_files() -> None:
    files = [f"{number:064x}" for number in range(300)]
    a = make(keep=False, files=files, signature=replace(BASE, media="256p"))
    wrong = a.scores.copy()
    wrong[:3] = 1 - np.eye(6)[a.labels[:3]]
    b = replace(a, scores=wrong, files=["f" * 64] * 3 + files[3:])
    copy = next(part for part in why(a, b).parts if part.factor == "copy")
    assert copy.note.startswith("the only difference left; 3 of 300 files differ, and make ")
    assert next(part for part in why(a, a).parts if part.factor == "copy").how == "same"
    part_of_it = b.select(range(3, 300))
    assert next(part for part in why(a, part_of_it).parts if part.factor == "copy").how == "same"
    unknown = make(keep=False, signature=replace(BASE, media="foreign-unverified"))
    assert "nobody hashed" in next(part for part in why(unknown, unknown).parts if part.factor == "copy").note
