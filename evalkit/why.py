"""Why do two numbers differ? The difference taken apart, one factor at a time, by rescoring what the files hold.

From b - a as it was reported, one side after the other is made like the other one; what that changes is the factor's
part, and what is left over belongs to the differences that no file can undo:

    reported          b - a
    label order       classes numbered in another known order are put right
    missing clips     only what was scored
    list              only what both scored
    labels            with a's labels on both sides
    views, crop       the same subset of the views that were kept
    aggregation       the same rule over them
    left over         sampling rule, crop's side, resize, copy, network, ...: one of these alone explains it, several
                      cannot be told apart

The parts add up to the difference. Taken in another order views, crop and aggregation can be of other sizes: between
which is said where there is more than one of them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from datakit.errors import NotComparable, UsageError

from . import aggregate, compare, copies, curve, metrics, orders
from . import groups as source_videos
from .protocols import AGGREGATIONS
from .resample import LEVEL, interval, resample_clips, resample_groups
from .scores import ScoreSet
from .signature import HOW, WITH, fingerprinted

How = Literal["same", "counted", "rescored", "left over", "not known"]

TITLES = {"media": "copy", "sampling": "sampling rule", "agg": "aggregation", "clip": "clip length", "dec": "decoder"}
FIELDS = {"views": "rows", "crop": "crops", "aggregation": "aggregation"}  # factor: what of a _Side it sets
SMALLEST_F16 = 6e-8  # a probability below it was rounded to 0
CLIPS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one factor adds to b - a, as a fraction of 1, with a 95 % interval where chance is in it.

    how  "same"       on both sides: adds nothing          "counted"  exact, no chance in it
         "rescored"   measured from the files               "left over" what remains, and only this factor differs
         "not known"  the files do not tell; ``note`` says what would
    least, most  of ``points`` over all orders in which the rescored factors could be taken; ``None`` where it is alone
    """

    factor: str
    a: str
    b: str
    how: How
    points: float | None = None
    low: float | None = None
    high: float | None = None
    least: float | None = None
    most: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """``difference`` = b - a as reported = the sum of the parts that are known + ``remaining``, whose 95 % interval is
    paired over the ``n`` clips that both scored."""

    names: tuple[str, str]
    signatures: tuple[str, str]
    metric: compare.Metric
    a: float
    b: float
    difference: float
    n: int
    parts: tuple[Part, ...]
    remaining: Part
    remarks: tuple[str, ...]

    @property
    def finding(self) -> str:
        """One sentence: the largest part."""
        known = [part for part in self.parts if part.points]
        if not known and self.remaining.points is not None and abs(self.remaining.points) < 1e-12:
            return "There is no difference"
        largest = max([*known, self.remaining], key=lambda part: abs(part.points or 0))
        total = f"{100 * self.difference:+.2f} points"
        if abs(self.difference) < 1e-12:
            return f"The numbers are equal, but not what they are made of: {self._moving(known)}"
        if largest is self.remaining:
            return f"Most of {total} is left over: {largest.note or 'nothing in the signatures explains it'}"
        return f"Of {total}, {100 * (largest.points or 0):+.2f} come from the {largest.factor}"

    def _moving(self, known: list[Part]) -> str:
        moving = [*known, self.remaining] if self.remaining.points else known
        return ", ".join(f"{part.factor} {100 * (part.points or 0):+.2f}" for part in moving)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "finding": self.finding}


@dataclass(slots=True, kw_only=True)
class _Side:
    """One side on its way to the other: its scores, and which of the common clips it gets right."""

    scores: ScoreSet
    right: NDArray[np.bool_]
    rows: int | None = None  # along time, of the views that count; None: all
    crops: list[int] | None = None
    aggregation: str | None = None


def why(
    a: ScoreSet,
    b: ScoreSet,
    *,
    names: tuple[str, str] = ("a", "b"),
    metric: compare.Metric = "top1",
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Why:
    """Take b - a apart. Nothing is refused but sides that share no labelled clip (``NotComparable``)."""
    if metric not in compare.METRICS:
        raise UsageError(f"--metric {metric}: type --metric {' or --metric '.join(compare.METRICS)}")
    signatures = (str(a.signature), str(b.signature))
    reported = [_reported(side, metric) for side in (a, b)]
    remarks = _remarks((a, b), names)
    parts: list[Part] = []

    (a, b), found = _label_orders(a, b, names, metric)
    parts += found
    parts.append(_missing(a, b, metric))
    common, part = _list(a, b, names, metric)
    parts.append(part)

    place_a, place_b = _rows(a), _rows(b)
    side_a, side_b = (
        side if side.ids == common else side.select([place[one] for one in common])  # views are large: no copy
        for side, place in ((a, place_a), (b, place_b))
    )
    labels = side_a.labels
    units = source_videos.units(common, groups)

    def measured(change: NDArray[np.int64]) -> tuple[float, float, float]:
        shares = compare.shares(labels, metric)
        strata = labels if metric == "mean_class" else np.zeros_like(labels)
        rng = np.random.default_rng(seed)
        if units is None:
            draws, num_units = resample_clips(change, strata, rng), len(change)
        else:
            draws, num_units = resample_groups(change, strata, units, rng), int(units.max()) + 1
        value = float(shares @ change)
        return (value, *interval(value, draws, num_units))

    sides = [_Side(scores=side, right=_right(side.scores, side.labels)) for side in (side_a, side_b)]
    relabelled, part = _labels(side_a, sides[1], measured)
    sides[1].scores = relabelled
    parts.append(part)
    before = [side.right for side in sides]
    left: list[Part] = []
    rescored: list[Part] = []
    for step in (_views, _crops, _aggregation):
        part = step(sides, names, measured)
        (left if part.how == "not known" else rescored).append(part)
    ranges = _in_every_order(sides, before, compare.shares(labels, metric))
    for part in rescored:
        least, most = ranges.get(part.factor, (None, None))
        parts.append(replace(part, least=least, most=most))
    change = sides[1].right.astype(np.int64) - sides[0].right
    left += [
        replace(part, note=_other_files(side_a, side_b, change, labels, metric))
        if part.factor == _title("media") and not part.note
        else part
        for part in _differing(side_a, side_b)
    ]
    value, low, high = measured(change)
    remaining = Part(factor="left over", a="", b="", how="left over", points=value, low=low, high=high)
    finding = [part for part in left if part.factor not in (_title(key) for key in WITH)] or left
    if len(finding) == 1:
        note = "; ".join(filter(None, ("the only difference left", finding[0].note)))
        only = replace(finding[0], how="left over", points=value, low=low, high=high, note=note)
        parts += [*(part for part in left if part is not finding[0]), only]
        zero = Part(factor="left over", a="", b="", how="left over", points=0.0)
        remaining = replace(zero, note=f"all of what is left is put down to the {only.factor}")
    else:
        several = ", ".join(part.factor for part in finding)
        note = f"{several} differ and cannot be told apart from these files" if finding else ""
        parts += left
        remaining = replace(remaining, note=note)
    parts += _the_same(parts)
    return Why(
        names=names, signatures=signatures, metric=metric, a=reported[0], b=reported[1],
        difference=reported[1] - reported[0], n=len(common), parts=tuple(parts), remaining=remaining,
        remarks=remarks,
    )  # fmt: skip


def describe(found: Why) -> str:
    """The terminal's text."""
    width = max(map(len, found.names))
    title = compare.METRICS[found.metric]
    sides = zip(found.names, (found.a, found.b), strict=True)
    lines = [f"{name:{width}}  {title} {100 * value:6.2f}" for name, value in sides]
    lines += [f"difference  {100 * found.difference:+.2f} points", ""]
    rows = [("factor", "points", "95 % interval", "from -> to")]
    for part in (*found.parts, found.remaining):
        points = "-" if part.points is None else f"{100 * part.points:+.2f}"
        span = "" if part.low is None or part.high is None else f"{100 * part.low:+.2f} to {100 * part.high:+.2f}"
        change = f"{part.a or 'not known'} -> {part.b or 'not known'}" if part.a or part.b else ""
        if part.least is not None and part.most is not None and part.most - part.least >= 5e-5:
            orders_text = f"taken in other orders {100 * part.least:+.2f} to {100 * part.most:+.2f}"
            change = f"{change}; {orders_text}"
        if part.how == "same":
            points, change = "0", f"the same{f' ({part.a})' if part.a else ''}"
        rows.append((part.factor, points, span, "; ".join(text for text in (change, part.note) if text)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines += [f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:{widths[2]}}  {row[3]}".rstrip() for row in rows]
    lines += ["", f"finding     {found.finding}.", *(f"note        {text}" for text in found.remarks)]
    lines += [f"signature   {signature}" for signature in found.signatures]
    return "\n".join(lines)


# --- which clips, which labels ---------------------------------------------------------------------------------------


def _label_orders(
    a: ScoreSet, b: ScoreSet, names: tuple[str, str], metric: compare.Metric
) -> tuple[list[ScoreSet], list[Part]]:
    """Both sides with their classes in the order that makes sense, and what that changes of b - a."""
    sides, parts = [], []
    for side, name, sign in ((a, names[0], 1), (b, names[1], -1)):
        guess = orders.guess(side)
        if guess is None:
            sides.append(side)
            continue
        mended = orders.mended(side, guess)
        change = _reported(mended, metric) - _reported(side, metric)
        words = ("as in the file", f"{' or '.join(guess.orders)}'s")
        first, second = words if sign > 0 else words[::-1]
        parts.append(
            Part(
                factor="label order", a=first, b=second, how="rescored", points=sign * change, note=f"{name} {guess}",
                **_share_interval(sign * change, len(side.ids)),
            )
        )  # fmt: skip
        sides.append(mended)
    return sides, parts


def _missing(a: ScoreSet, b: ScoreSet, metric: compare.Metric) -> Part:
    scored = [_value(*_outcome(side, "drop"), metric) for side in (a, b)]
    reported = [_reported(side, metric) for side in (a, b)]
    points = (reported[1] - reported[0]) - (scored[1] - scored[0])
    texts = [
        f"{len(side.missing)} {'left out' if metrics.rules(side)[0] == 'drop' else 'count as wrong'}"
        if side.missing
        else "none"
        for side in (a, b)
    ]
    same = texts[0] == texts[1] and abs(points) < 1e-12
    absent = [{str(entry["id"]) for entry in side.missing} for side in (a, b)]
    shared = texts[0] == texts[1] and absent[0] == absent[1]
    note = "the same clips: they only make the difference smaller" if shared else ""
    return Part(
        factor="missing clips", a=texts[0], b=texts[1], how="same" if same else "counted",
        points=0.0 if same else points, note="" if same else note,
    )  # fmt: skip


def _list(a: ScoreSet, b: ScoreSet, names: tuple[str, str], metric: compare.Metric) -> tuple[list[str], Part]:
    """(ids that both scored and that have a label on both, what the others add)."""
    rows_b = _rows(b)
    common = [clip_id for clip_id in _rows(a) if clip_id in rows_b]
    if not common:
        raise NotComparable(f"{names[0]} and {names[1]} share no clip that has a label: there is nothing to take apart")
    points, spread, texts, shared = 0.0, 0.0, [], set(common)
    for side, sign in ((a, -1), (b, 1)):
        rows = _rows(side)
        inside = np.array([rows[one] for one in common])
        outside = np.array([row for one, row in rows.items() if one not in shared], dtype=np.int64)
        whole = np.array(list(rows.values()))
        right = _right(side.scores, side.labels)
        change = _value(side.labels[whole], right[whole], metric) - _value(side.labels[inside], right[inside], metric)
        points += sign * change
        if len(outside):
            both = (right[outside], right[inside])
            share = len(outside) / len(rows)
            spread += share**2 * sum(float(one.var()) / len(one) for one in both)
        texts.append(f"{len(rows)} clips{_copy(side)}, {len(outside)} of them not in the other" if len(outside)
                     else f"{len(rows)} clips{_copy(side)}")  # fmt: skip
    if not spread:
        part = Part(factor="list", a=f"{len(common)} clips", b=f"{len(common)} clips", how="same", points=0.0)
        if abs(points) >= 1e-12:
            part = replace(part, a=texts[0], b=texts[1], how="counted", points=points)
        return common, part
    half = -float(special.ndtri(LEVEL / 2)) * spread**0.5
    return common, Part(
        factor="list", a=texts[0], b=texts[1], how="rescored", points=points, low=points - half, high=points + half
    )


def _labels(side_a: ScoreSet, b: _Side, measured: Any) -> tuple[ScoreSet, Part]:
    """b with the labels of a, told by class name; a name that b does not know makes its clips wrong."""
    index = {name: number for number, name in enumerate(b.scores.classes)}
    wanted = np.array([index.get(name, -1) for name in side_a.label_names()], dtype=np.int64)
    differ = int((wanted != b.scores.labels).sum())
    if not differ:
        return b.scores, Part(factor="labels", a="", b="", how="same", points=0.0)
    right = np.where(wanted >= 0, _right(b.scores.scores, np.maximum(wanted, 0)), False)
    points, low, high = measured(b.right.astype(np.int64) - right)
    b.right = right
    relabelled = replace(b.scores, labels=np.maximum(wanted, 0))
    note = f"{differ} of the clips that both scored have another label in b"
    return relabelled, Part(
        factor="labels", a=side_a.signature.list, b=b.scores.signature.list, how="rescored", points=points, low=low,
        high=high, note=note,
    )  # fmt: skip


# --- views -----------------------------------------------------------------------------------------------------------


def _views(sides: list[_Side], names: tuple[str, str], measured: Any) -> Part:
    """The same number of clips along the video, where the side with more kept its views."""
    counts = [_num_rows(side.scores) for side in sides]
    return _fewer(sides, names, measured, "views", counts, "clips")


def _crops(sides: list[_Side], names: tuple[str, str], measured: Any) -> Part:
    """The same crops: the centre alone where one side has nothing else."""
    counts = [_parsed(side.scores)[1] for side in sides]
    return _fewer(sides, names, measured, "crop", counts, "crops")


def _fewer(
    sides: list[_Side], names: tuple[str, str], measured: Any, factor: str, counts: list[int | None], unit: str
) -> Part:
    texts = ["" if count is None else f"{count} {unit if count > 1 else unit[:-1]}" for count in counts]
    part = Part(factor=factor, a=texts[0], b=texts[1], how="not known")
    if counts[0] is None or counts[1] is None:
        unknown = counts == [None, None]
        return replace(part, how="same" if unknown else "not known", points=0.0 if unknown else None)
    if counts[0] == counts[1]:
        return replace(part, how="same", points=0.0)
    place = int(counts[1] > counts[0])  # the side with more
    larger, fewest = sides[place], min(counts[0], counts[1])
    if larger.scores.views is None or "protocol" not in larger.scores.meta:
        return replace(part, note=f"needs the views of {names[place]}: score it again with --save-views")
    if unit == "clips":
        larger.rows = fewest
    elif fewest == 1:
        larger.crops = [curve.centre_crop(larger.scores.meta["protocol"])]
    else:
        return replace(part, note=f"{fewest} crops are no subset of {max(counts[0], counts[1])}")
    return _stepped(part, larger, place, measured, f"rescored on the views of {names[place]}")


def _aggregation(sides: list[_Side], names: tuple[str, str], measured: Any) -> Part:
    """The same rule over the views that are left, where one side kept its views."""
    rules = [side.scores.signature.agg for side in sides]
    part = Part(factor="aggregation", a=rules[0], b=rules[1], how="not known")
    if rules[0] == rules[1]:
        return replace(part, how="same", points=0.0)
    for place, side in enumerate(sides):
        other = rules[1 - place]
        if other in AGGREGATIONS and rules[place] in AGGREGATIONS and side.scores.views is not None:
            if "protocol" not in side.scores.meta:
                continue
            side.aggregation = other
            return _stepped(part, side, place, measured, f"{other} over the views of {names[place]}")
    known = all(rule in AGGREGATIONS for rule in rules)
    return replace(part, note="needs the views of one side: score it again with --save-views" if known else "")


def _stepped(part: Part, side: _Side, place: int, measured: Any, note: str) -> Part:
    """The part that rescoring ``side`` as it now stands explains: a becomes like b, or b like a."""
    after = _rescored(side)
    change = after.astype(np.int64) - side.right if place == 0 else side.right.astype(np.int64) - after
    side.right = after
    points, low, high = measured(change)
    return replace(part, how="rescored", points=points, low=low, high=high, note=note)


def _in_every_order(
    sides: list[_Side], before: list[NDArray[np.bool_]], shares: NDArray[np.float64]
) -> dict[str, tuple[float, float]]:
    """Least and most that each rescored factor adds, over every set of the others that may be taken before it."""
    taken = [(factor, place) for factor in FIELDS for place, side in enumerate(sides) if getattr(side, FIELDS[factor])]
    if len(taken) < 2:
        return {}
    gaps = {}
    for count in range(len(taken) + 1):
        for some in itertools.combinations(taken, count):
            rights = []
            for place, side in enumerate(sides):
                kept = {FIELDS[factor] for factor, of in some if of == place}
                back: dict[str, Any] = {field: None for field in FIELDS.values() if field not in kept}
                rights.append(_rescored(replace(side, **back)) if kept else before[place])
            gaps[frozenset(some)] = float(shares @ (rights[1].astype(np.int64) - rights[0]))
    found = {}
    for one in taken:
        adds = [gap - gaps[some | {one}] for some, gap in gaps.items() if one not in some]
        found[one[0]] = (min(adds), max(adds))
    return found


def _rescored(side: _Side) -> NDArray[np.bool_]:
    """bool [N]: what is right by the views, crops and rule that ``side`` names."""
    scores = side.scores
    assert scores.views is not None
    own_rule = str(scores.meta["protocol"]["aggregation"])
    rule = side.aggregation or own_rule
    held = str(scores.meta.get("views_hold", aggregate.views_hold(own_rule)))
    num_rows_of, num_crops = curve.rows_of(scores)
    crops = side.crops or list(range(num_crops))
    right = np.zeros(len(scores.ids), bool)
    for own in np.unique(num_rows_of):
        rows = sorted(curve.spread(int(own))[: side.rows or int(own)])
        among = np.flatnonzero(num_rows_of == own)
        for start in range(0, len(among), CLIPS_AT_ONCE):
            part = among[start : start + CLIPS_AT_ONCE]
            kept = scores.views[part, : own * num_crops].astype(np.float32)
            cube = kept.reshape(len(part), num_crops, int(own), -1)[:, crops][:, :, rows]
            flat = _as_wanted(cube.reshape(len(part), len(crops) * len(rows), -1), held, aggregate.views_hold(rule))
            table = flat.max(axis=1) if rule == "prob-max" else flat.mean(axis=1, dtype=np.float64)
            right[part] = _right(table, scores.labels[part])
    return right


def _as_wanted(views: NDArray[np.float32], held: str, wanted: str) -> NDArray[np.float32]:
    if held == wanted:
        return views
    if wanted == "logit":  # up to a constant a view, which no mean of logits notices in the end
        logits: NDArray[np.float32] = np.log(np.maximum(views, SMALLEST_F16))
        return logits
    probabilities: NDArray[np.float32] = special.softmax(views, axis=-1)
    return probabilities


def _num_rows(scores: ScoreSet) -> int | None:
    """Rows along time: those of the views that were kept, else those that the protocol makes of a video."""
    protocol = scores.meta.get("protocol")
    if scores.views is not None and protocol:
        return int(curve.rows_of(scores)[0].max())
    num_clips = _parsed(scores)[0]
    if num_clips is None or not protocol:
        return num_clips
    options = protocol.get("options", {})
    num_rows = num_clips * (2 if options.get("twice_sample") else 1)
    if options.get("sampler") == "dense":
        num_rows *= int(options.get("num_sample_positions", 10))
    if protocol["aggregation"] == "segment-logit-mean":
        num_rows //= int(scores.meta.get("spec", {}).get("num_segments") or 1)
    return num_rows


def _parsed(scores: ScoreSet) -> tuple[int | None, int | None, str]:
    """(clips, crops, crop's side) of the signature."""
    match = re.fullmatch(r"(\d+)x(\d+)@(\d+)", scores.signature.views)
    return (int(match[1]), int(match[2]), match[3]) if match else (None, None, "")


# --- what no file can undo -------------------------------------------------------------------------------------------


def _differing(a: ScoreSet, b: ScoreSet) -> list[Part]:
    """Parts of the signatures that differ and were not rescored."""
    pairs = [("crop side", _parsed(a)[2], _parsed(b)[2])]
    for key in ("media", *HOW, *WITH):
        if key not in ("views", "agg", "missing"):
            pairs.append((_title(key), getattr(a.signature, key), getattr(b.signature, key)))
    found = [Part(factor=factor, a=str(one), b=str(two), how="not known") for factor, one, two in pairs if one != two]
    if a.signature.media == b.signature.media and not fingerprinted(a.signature.media):
        copy = Part(factor=_title("media"), a=a.signature.media, b=b.signature.media, how="not known")
        found.append(replace(copy, note="nobody hashed the files: they may be different copies"))
    return found


def _other_files(
    a: ScoreSet, b: ScoreSet, change: NDArray[np.int64], labels: NDArray[np.int64], metric: compare.Metric
) -> str:
    """Where each file's hash is known: how many files are others, and what those clips make of what is left over."""
    if a.files is None or b.files is None:
        return ""
    other = np.array(a.files) != np.array(b.files)  # the same clips in the same order
    points = 100 * float(compare.shares(labels, metric) @ (change * other))
    return f"{int(other.sum())} of {len(other)} files differ, and make {points:+.2f} of what is left over"


def _the_same(parts: list[Part]) -> list[Part]:
    """A line for each factor that people ask about and that is the same on both sides."""
    named = {part.factor for part in parts}
    return [
        Part(factor=factor, a="", b="", how="same", points=0.0)
        for factor in ("copy", "sampling rule", "label order")
        if factor not in named
    ]


def _title(key: str) -> str:
    return TITLES.get(key, key)


def _remarks(sides: tuple[ScoreSet, ScoreSet], names: tuple[str, str]) -> tuple[str, ...]:
    said = []
    for side, name in zip(sides, names, strict=True):
        if text := copies.sentence(side):
            said.append(f"{name} scored {text}")
        if text := orders.sentence(side):
            said.append(f"{name} {text}")
    return tuple(said)


# --- numbers ---------------------------------------------------------------------------------------------------------


def _reported(side: ScoreSet, metric: compare.Metric) -> float:
    missing, _ = metrics.rules(side)
    value = metrics.summary(side, missing)[metric]
    return float(value or 0.0)


def _outcome(side: ScoreSet, missing: metrics.Missing) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    _, labels, found = metrics.outcomes(side, missing)
    return labels, found == 0


def _value(labels: NDArray[np.int64], right: NDArray[np.bool_], metric: compare.Metric) -> float:
    return float(compare.shares(labels, metric) @ right) if len(labels) else 0.0


def _right(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [N]; a clip without a label is not right."""
    first: NDArray[np.bool_] = metrics.ranks(scores, np.maximum(labels, 0)) == 0
    return first & (labels >= 0)


def _rows(side: ScoreSet) -> dict[str, int]:
    """Row of each clip that has a label."""
    return {clip_id: row for row, clip_id in enumerate(side.ids) if side.labels[row] >= 0}


def _copy(side: ScoreSet) -> str:
    text = copies.sentence(side)
    return f" ({text})" if text else ""


def _share_interval(points: float, num_clips: int) -> dict[str, float]:
    """Normal interval of a change in which almost every clip takes part."""
    half = -float(special.ndtri(LEVEL / 2)) * (abs(points) * max(0.0, 1 - abs(points)) / max(1, num_clips)) ** 0.5
    return {"low": points - half, "high": points + half}
