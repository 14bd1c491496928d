"""What do the views buy? Accuracy over subsets of the views that were scored, without running anything again.

Views of a video: V = crops x R rows along time; view v = crop * R + row. Subsets of the rows are spread evenly along
the video and nested, so that the curve shows what a further row adds:

    10 rows, the order in which they are taken:   5 1 8 3 ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datakit.errors import BadManifest, DataError

from . import compare, metrics, views
from . import groups as source_videos
from .resample import LEVEL, interval, resample_clips, resample_groups
from .scores import ScoreSet

SUMS = ("prob-mean", "prob-sum", "segment-logit-mean", "logit-mean")  # rank classes as the sum of the views does
CLIPS_AT_ONCE = 256
NOTE = (
    "Subsets of the clips that were scored, spread evenly along the video: {num} of {rows} clips are not the protocol "
    "that is named after {num} clips, whose clips start elsewhere."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """``num_rows`` clips along the video, of each ``num_crops`` crops. Shares of 1 with 95 % intervals.

    change   against all views, on the same clips, with its paired interval; ``p`` of the paired test, corrected by Holm
             over all points
    macs     multiply-adds of a video, ``None`` where those of a view are not known
    """

    num_rows: int
    num_crops: int
    num_views: int
    macs: float | None
    top1: float
    top1_low: float
    top1_high: float
    top5: float
    mean_class: float
    change: float
    change_low: float
    change_high: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """``points``: centre crop first, then all crops, each from one clip to all. ``scored``: top-1 of the file itself,
    whose mean was taken before the views were rounded to float16."""

    points: tuple[Point, ...]
    num_rows: int
    num_crops: int
    n: int
    scored: float
    unit: str
    num_units: int
    notes: tuple[str, ...]
    signature: str

    @property
    def enough(self) -> Point:
        """The fewest views whose number chance cannot tell from that of all, nor (Holm) those of more views."""
        enough = self.points[-1]
        for point in sorted(self.points, key=lambda point: (-point.num_views, point.num_crops)):
            if point.p < LEVEL:
                break
            if point.change_low <= 0 <= point.change_high:
                enough = point
        return enough

    @property
    def headline(self) -> str:
        """One short sentence."""
        point, last = self.enough, self.points[-1]
        if point.num_views == last.num_views:
            return f"All {last.num_views} views are needed: fewer give another number beyond chance"
        return f"From {point.num_views} of {last.num_views} views on the number cannot be told from that of all"

    @property
    def detail(self) -> str:
        """The numbers behind the headline; "" where all views are needed."""
        point, last = self.enough, self.points[-1]
        if point.num_views == last.num_views:
            return ""
        return (
            f"{100 * point.top1:.2f} against {100 * last.top1:.2f} (difference {100 * point.change:+.2f}, "
            f"95 % interval {100 * point.change_low:+.2f} to {100 * point.change_high:+.2f})"
        )

    @property
    def finding(self) -> str:
        """Both in one sentence."""
        return f"{self.headline}: {self.detail}" if self.detail else self.headline

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "finding": self.finding, "enough": asdict(self.enough)}


def of(
    score_set: ScoreSet, *, macs_per_view: float | None = None, groups: Mapping[str, str] | None = None, seed: int = 0
) -> Curve:
    """The curve of a run that kept its views. Clips that could not be scored count as the run counts them.

    Raises ``DataError`` where there are no views, or what they are is not known; ``BadManifest`` where they do not fit.
    """
    num_crops, aggregation = _how(score_set)
    assert score_set.views is not None
    if macs_per_view is None:
        macs_per_view = score_set.meta.get("macs_per_view")
    missing, rule = metrics.rules(score_set)
    rows = np.flatnonzero(score_set.labels >= 0)
    ids, labels, _ = metrics.outcomes(score_set, missing)
    if not len(rows):
        raise DataError("no clip has a label: there is no accuracy to draw")
    centre = centre_crop(score_set.meta["protocol"])
    sets = [[centre]] if num_crops == 1 else [[centre], list(range(num_crops))]
    ranks, num_rows = _ranks(score_set, rows, labels[: len(rows)], num_crops, sets, aggregation)
    # clips that were not scored stand behind the scored ones, as in ``outcomes``
    absent = np.full((*ranks.shape[:2], len(ids) - len(rows)), metrics.NEVER)
    ranks = np.concatenate([ranks, absent], axis=2)
    units = source_videos.units(ids, groups)
    last = ranks[-1, -1] == 0
    points = []
    for place, crops in enumerate(sets):
        for count in range(1, num_rows + 1):
            found = ranks[place, count - 1]
            right = found == 0
            change = right.astype(np.int64) - last
            bounds = []
            for gain in (right.astype(np.int64), change):
                rng, one = np.random.default_rng(seed), np.zeros_like(labels)
                draws = (
                    resample_clips(gain, one, rng) if units is None else resample_groups(gain, one, units, rng)
                )  # fmt: skip
                bounds.append(interval(float(gain.mean()), draws, len(ids) if units is None else len(set(units))))
            whole = count == num_rows and place == len(sets) - 1
            points.append(
                Point(
                    num_rows=count,
                    num_crops=len(crops),
                    num_views=count * len(crops),
                    macs=None if macs_per_view is None else macs_per_view * count * len(crops),
                    top1=float(right.mean()),
                    top1_low=max(0.0, bounds[0][0]),
                    top1_high=min(1.0, bounds[0][1]),
                    top5=float((found < 5).mean()),
                    mean_class=_mean_class(labels, right),
                    change=float(change.mean()),
                    change_low=0.0 if whole else bounds[1][0],
                    change_high=0.0 if whole else bounds[1][1],
                    p=compare.changed(change, units, seed),
                )
            )
    corrected = compare.holm([point.p for point in points])
    points = [replace(point, p=p) for point, p in zip(points, corrected, strict=True)]
    return Curve(
        points=tuple(points),
        num_rows=num_rows,
        num_crops=num_crops,
        n=len(ids),
        scored=float(metrics.summary(score_set, missing, rule)["top1"]),
        unit="clip" if groups is None else "video",
        num_units=len(ids) if units is None else len(set(units)),
        notes=(NOTE.format(num=num_rows // 2, rows=num_rows),) if num_rows > 1 else (),
        signature=str(score_set.signature),
    )


def spread(num_rows: int) -> list[int]:
    """Rows in the order in which they join: each next one leaves the rows nearest to those that are taken."""
    places = np.arange(num_rows)
    nearest = np.full(num_rows, float(num_rows))
    order: list[int] = []
    while len(order) < num_rows:
        costs = [
            np.inf if row in order else float(np.square(np.minimum(nearest, abs(places - row))).sum())
            for row in range(num_rows)
        ]
        order.append(int(np.argmin(costs)))
        nearest = np.minimum(nearest, abs(places - order[-1]))
    return order


def centre_crop(protocol: Mapping[str, Any]) -> int:
    """Which of a protocol's crops is the one at the centre, mirrored ones counted: 2 of three, 8 of ten (mmaction2)."""
    num_crops, size = int(protocol["num_crops"]), int(protocol["crop_px"])
    mirrored = num_crops == 10
    height = size if num_crops == 3 else 2 * size
    boxes = views.crop_boxes(protocol["sampling"], height, 2 * size, size, 5 if mirrored else num_crops)
    away = [abs(top + size / 2 - height / 2) + abs(left - size / 2) for top, left, _, _ in boxes]
    return int(np.argmin(away)) * (2 if mirrored else 1)


def describe(curve: Curve) -> str:
    """The terminal's text."""
    lines = [f"{'clips':>5}  {'crops':>5}  {'views':>5}  {'GMACs':>9}  {'top-1':>6}  {'95 % interval':16}  "
             f"{'top-5':>6}  {'mean class':>10}  against all"]  # fmt: skip
    for point in curve.points:
        macs = "-" if point.macs is None else f"{point.macs / 1e9:.1f}"
        against = (
            "" if point.num_views == curve.points[-1].num_views
            else f"{100 * point.change:+.2f} ({100 * point.change_low:+.2f} to {100 * point.change_high:+.2f})"
        )  # fmt: skip
        lines.append(
            f"{point.num_rows:5}  {point.num_crops:5}  {point.num_views:5}  {macs:>9}  {100 * point.top1:6.2f}  "
            f"{f'{100 * point.top1_low:.2f} to {100 * point.top1_high:.2f}':16}  {100 * point.top5:6.2f}  "
            f"{100 * point.mean_class:10.2f}  {against}".rstrip()
        )
    lines += ["", f"finding     {curve.finding}.", *(f"note        {note}" for note in curve.notes)]
    if any(point.macs is None for point in curve.points):
        lines.append("note        multiply-adds are not known: type --macs-per-view, such as 38.6G")
    return "\n".join([*lines, f"signature   {curve.signature}"])


def rows_of(score_set: ScoreSet) -> tuple[NDArray[np.int64], int]:
    """(rows along time of each clip, crops). Clips that have fewer are filled up with NaN at the end."""
    num_crops, _ = _how(score_set)
    assert score_set.views is not None
    num_views = (~np.isnan(score_set.views[:, :, 0])).sum(axis=1)
    if (num_views % num_crops).any() or not num_views.all():
        raise BadManifest(f"views {score_set.views.shape} are not {num_crops} crops of each clip's rows along time")
    return (num_views // num_crops).astype(np.int64), num_crops


def _how(score_set: ScoreSet) -> tuple[int, str]:
    """(crops, aggregation) of the views. Raises ``DataError``."""
    if score_set.views is None:
        raise DataError("these scores hold no views; run again with --save-views")
    protocol = score_set.meta.get("protocol")
    if not protocol:
        raise DataError("these scores do not say how their views were made (meta has no protocol)")
    return int(protocol["num_crops"]), str(protocol["aggregation"])


def _ranks(
    score_set: ScoreSet,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    num_crops: int,
    sets: list[list[int]],
    aggregation: str,
) -> tuple[NDArray[np.int64], int]:
    """(ranks int64 [sets, R, clips], R): the label's rank by the first 1..R rows of ``spread``, for each set of crops.

    A clip that has fewer rows than another keeps what all of its rows say.
    """
    assert score_set.views is not None
    num_rows_of, _ = rows_of(score_set)
    most = int(num_rows_of[rows].max())
    ranks = np.empty((len(sets), most, len(rows)), np.int64)
    for own in np.unique(num_rows_of[rows]):
        order = spread(int(own))
        among = np.flatnonzero(num_rows_of[rows] == own)
        for start in range(0, len(among), CLIPS_AT_ONCE):
            part = among[start : start + CLIPS_AT_ONCE]
            kept = score_set.views[rows[part], : own * num_crops].astype(np.float32)
            cube = kept.reshape(len(part), num_crops, int(own), -1)
            for place, crops in enumerate(sets):
                total = None
                for step, row in enumerate(order):
                    news = cube[:, crops, row]
                    if aggregation in SUMS:
                        total = news.sum(axis=1) if total is None else total + news.sum(axis=1)
                    else:
                        total = news.max(axis=1) if total is None else np.maximum(total, news.max(axis=1))
                    ranks[place, step, part] = metrics.ranks(total, labels[part])
                ranks[place, int(own) :, part] = ranks[place, int(own) - 1, part][:, None]
    return ranks, most


def _mean_class(labels: NDArray[np.int64], right: NDArray[np.bool_]) -> float:
    _, where, count = np.unique(labels, return_inverse=True, return_counts=True)
    return float((np.bincount(where, right) / count).mean())
