"""What the page says, as plain values and sentences; the template only lays them out.

Score sets of the same test set and the same classes make one group: they share a table, and the best of them is shown
class by class. Shares are fractions of 1 here and percent on the page.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datakit.errors import UsageError
from evalkit import compare, curve, fuse, metrics, remarks, scores
from evalkit import groups as source_videos
from evalkit.compare import Comparison, Difference
from evalkit.scores import ScoreSet
from evalkit.signature import COPY, HOW, WHAT, WITH, Signature

ALL_CLASSES = 60  # that many classes are shown in full, of more the best and the worst
BEST_AND_WORST = 15
HEAT_MAP_CLASSES = 40
CONFUSED_PAIRS = 12
WORST_CLIPS = 20
ALWAYS_SHOWN = ("model", "views", "input")
NBSP = "\u00a0"
Z95 = 1.959964  # the normal distribution's 97.5 % point


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """An interval on an axis, in percent of the axis's length; ``zero`` is where 0 lies, where that is of interest."""

    low: float
    value: float
    high: float
    text: str
    zero: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table of results. Numbers are (share, standard error), ``None`` where nothing can be said."""

    name: str
    numbers: tuple[tuple[float | None, float | None], ...]
    whisker: Whisker | None
    num_scored: int
    num_requested: int
    facts: tuple[str, ...]
    best: bool
    notes: tuple[str, ...]
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Results. ``columns`` are the signature's parts that are shown a row, ``common`` those that all rows share;
    ``shown``: the row that the page is about."""

    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    common: tuple[tuple[str, str], ...]
    axis: tuple[float, float]
    footnotes: tuple[str, ...]
    shown: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two score sets side by side: the verdict, the difference on the axis of all pairs, what lies behind it."""

    verdict: str
    differs: bool
    whisker: Whisker
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """``main``: those of the best score set, ``others``: the rest; ``refused``: why a pair may not be compared."""

    finding: str
    main: tuple[Pair, ...]
    others: tuple[Pair, ...]
    axis: tuple[float, float]
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotScored:
    """What these score sets did not score: counts by kind of reason, and (id, label, reason) of each clip."""

    finding: str
    kinds: tuple[tuple[str, int], ...]
    clips: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """An accuracy with its 95 % interval (Wilson), from ``num`` clips."""

    name: str
    share: float
    low: float
    high: float
    num_right: int
    num: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """The clips that exactly these streams get right, and how many of them the fusion gets right."""

    text: str
    num: int
    num_fused_right: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """A fusion below its parts, over the ``num`` clips that count for all of them."""

    finding: str
    num: int
    bars: tuple[Bar, ...]
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point of a chart with its interval, in percent of the chart's width and height (from the top)."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Top-1 against the number of views. ``about``: the finding with its numbers; ``lines``: name and marks; ticks:
    place in percent, text; ``points``: of the table below the chart."""

    finding: str
    about: str
    lines: tuple[tuple[str, tuple[Mark, ...]], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    points: tuple[curve.Point, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    finding: str
    lists: tuple[tuple[str, tuple[Bar, ...]], ...]
    without_clips: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """``cells``: a row a true class, each (clips, percent of the row's clips); ``None`` for many classes."""

    finding: str
    classes: tuple[str, ...]
    cells: tuple[tuple[tuple[int, int], ...], ...] | None
    pairs: tuple[tuple[str, str, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstClip:
    id: str
    label: str
    predicted: str
    score: float
    label_score: float
    picture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """``pictures``: why there are none, or fewer than clips; "" where each clip has one."""

    finding: str
    clips: tuple[WorstClip, ...]
    pictures: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All that is said about one test set. ``shown``: the score set that the class parts are about."""

    title: str
    finding: str
    remarks: tuple[str, ...]
    table: Table
    views: tuple[Views, ...]
    pairs: Pairs | None
    streams: tuple[Streams, ...]
    missing: tuple[NotScored, ...]
    shown: str
    classes: Classes | None
    confusion: Confusion | None
    worst: Worst | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    title: str
    apart: str
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """A score set with its name on the page and its numbers. ``what``: the same for sets that may be compared."""

    name: str
    what: tuple[object, ...]
    scores: ScoreSet
    summary: dict[str, Any]
    rule: metrics.Rule
    missing: metrics.Missing
    groups: dict[str, str] | None
    views: Views | None

    @property
    def top1(self) -> float | None:
        share = self.summary["top1"]
        assert share is None or isinstance(share, float)
        return share


Pictures = Callable[[ScoreSet, Sequence[str]], Mapping[str, str]]
Macs = Callable[[ScoreSet], float | None]


def gather(
    dirs: Sequence[str | Path],
    *,
    across_copies: bool,
    groups: str = "auto",
    pictures: Pictures = lambda *_: {},
    macs: Macs = lambda _: None,
) -> Page:
    """Read the score sets and work out everything that the page says. ``pictures``: ``data:`` URIs of clips by id;
    ``macs``: multiply-adds of a view."""
    if not dirs:
        raise UsageError("nothing to report on; python -m evalkit report DIR... takes the folders of scores.npz files")
    sets = [
        _scored(name, scores.load(path), across_copies, groups, macs)
        for name, path in zip(names(dirs), dirs, strict=True)
    ]
    together: dict[tuple[str, tuple[str, ...]], list[Scored]] = {}
    for scored in sets:
        together.setdefault((scored.scores.signature.set, tuple(sorted(scored.scores.classes))), []).append(scored)
    test_sets = dict.fromkeys(_set_name(members[0]) for members in together.values())
    apart = "; ".join(", ".join(scored.name for scored in members) for members in together.values())
    apart = f"Of different test sets or classes, and not compared with each other: {apart}."
    return Page(
        title=f"{', '.join(test_sets)}: {_number(len(sets), 'test result')}",
        apart=apart if len(together) > 1 else "",
        groups=tuple(_group(members, across_copies, pictures) for members in together.values()),
    )


def names(dirs: Sequence[str | Path]) -> list[str]:
    """A different name for each folder: its own, with as many of its parents' as it takes."""
    paths = [Path(path).absolute() for path in dirs]
    paths = [path.parent if path.name == scores.FILE_NAME else path for path in paths]
    depth = 1
    found = [path.name for path in paths]
    while len(set(found)) < len(found) and depth < max(len(path.parts) for path in paths):
        depth += 1
        repeated = Counter(found)
        found = [
            "/".join(path.parts[-depth:]) if repeated[name] > 1 else name
            for path, name in zip(paths, found, strict=True)
        ]
    if len(set(found)) < len(found):
        twice = next(name for name, count in Counter(found).items() if count > 1)
        raise UsageError(f"{twice} is given twice; python -m evalkit report takes each folder once")
    return found


def percent(share: float | None, digits: int = 2) -> str:
    """``75.12``, or a dash where there is no number."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


# --- results ------------------------------------------------------------------------------------------------


def _scored(name: str, score_set: ScoreSet, across_copies: bool, groups: str, macs: Macs) -> Scored:
    """The views of a run are large: what is said of them is worked out here, and they are left behind."""
    what = WHAT if across_copies else (*WHAT, *COPY)
    missing, rule = metrics.rules(score_set)
    videos = source_videos.of(score_set, groups)
    return Scored(
        name=name,
        what=tuple(getattr(score_set.signature, part) for part in what),
        scores=replace(score_set, views=None),
        summary=(summary := metrics.summary(score_set, missing, rule, videos)),
        rule=rule,
        missing=missing,
        groups=videos,
        views=_views(name, score_set, videos, macs) if summary["top1"] is not None else None,
    )


def _group(members: list[Scored], across_copies: bool, pictures: Pictures) -> Group:
    best = _best(members)
    shown = best or members[0]
    compared, refused = _compared(members, across_copies)
    clips, classes = _number(shown.summary["requested"], "clip"), _number(len(shown.scores.classes), "class", "classes")
    return Group(
        title=f"{_set_name(shown)}: {clips} of {classes}",
        finding=_finding(members, best, compared),
        remarks=tuple(_remarks(members)),
        table=_table(members, best),
        views=tuple(scored.views for scored in members if scored.views),
        pairs=_pairs(compared, refused, best),
        streams=tuple(streams for scored in members if (streams := _streams(scored, members, compared))),
        missing=_missing(members),
        shown=shown.name,
        classes=_classes(shown),
        confusion=_confusion(shown),
        worst=_worst(shown, pictures),
    )


def _remarks(members: list[Scored]) -> list[str]:
    """Which published copy was scored, and results at chance level; what is said of several is said once."""
    said: dict[str, list[str]] = {}
    for scored in members:
        for key, text in remarks.of(scored.scores).items():
            said.setdefault(f"The clips are {text}" if key == "copy" else text, []).append(scored.name)
    return [
        f"{text}." if len(names) == len(members) and text.startswith("The clips") else f"{', '.join(names)}: {text}."
        for text, names in said.items()
    ]


def _set_name(scored: Scored) -> str:
    return scored.scores.signature.set or "a list of clips"


def _best(members: list[Scored]) -> Scored | None:
    """The highest top-1 of those that may be compared: of the most that may."""
    measured = [scored for scored in members if scored.top1 is not None]
    if not measured:
        return None
    usual = Counter(scored.what for scored in measured).most_common(1)[0][0]
    return max((scored for scored in measured if scored.what == usual), key=lambda scored: scored.top1 or 0)


def _finding(members: list[Scored], best: Scored | None, compared: list[Comparison]) -> str:
    if best is None:
        return "No clip has a label, so there is no accuracy"
    number = f"{metrics.percent(best.top1, best.summary['top1_se']).strip()} %".replace(" ", NBSP)
    top1 = f"{number} of the clips are right"
    if len(members) == 1:
        return f"{best.name}: {top1}"
    peers = [scored for scored in members if scored.what == best.what]
    if len(peers) == 1:
        return f"{len(members)} results, none of which may be compared with another"
    level = [scored.name for scored in peers if scored.top1 == best.top1]
    if len(level) > 1:
        return f"{_listed(level)} are level{' at the top' if len(level) < len(peers) else ''}: {top1}"
    finding = f"{best.name} is highest: {top1}"
    below = [pair for pair in compared if best.name == pair.names[1]]
    if not below:
        return finding
    nearest = min(below, key=lambda pair: pair.difference)
    rival = nearest.names[0]
    if not nearest.differs:
        return f"{finding}, but not beyond chance above {rival}"
    low, high = percent(nearest.low, 1), percent(nearest.high, 1)
    return f"{finding}, {percent(nearest.difference, 1)} points above {rival} (95{NBSP}%: {low} to {high})"


def _listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _table(members: list[Scored], best: Scored | None) -> Table:
    signatures = [scored.scores.signature for scored in members]
    parts = [part for part in (*HOW, *COPY, *WITH) if any(getattr(signature, part) for signature in signatures)]
    values = {part: [_value(signature, part) for signature in signatures] for part in parts}
    columns = [part for part in parts if part in ALWAYS_SHOWN or len(set(values[part])) > 1]
    peers = [scored for scored in members if best and scored.what == best.what]
    marked = [scored for scored in peers if best and scored.top1 == best.top1]
    intervals = {scored.name: _interval(scored) for scored in members if scored.top1 is not None}
    low = math.floor(10 * min((low for low, _ in intervals.values()), default=0)) / 10
    high = math.ceil(10 * max((high for _, high in intervals.values()), default=1)) / 10

    def row(scored: Scored) -> Row:
        signature, summary = scored.scores.signature, scored.summary
        whisker = None
        if scored.top1 is not None:
            ends = intervals[scored.name]
            places = [100 * (share - low) / (high - low) for share in (ends[0], scored.top1, ends[1])]
            text = f"95 % interval {percent(ends[0], 1)} to {percent(ends[1], 1)}"
            whisker = Whisker(low=places[0], value=places[1], high=places[2], text=text)
        notes = []
        if parts := _parts(scored, members):
            notes.append(" and ".join(f"{weight:g} × {part.name if part else text}" for weight, part, text in parts))
        if len(peers) > 1 and scored not in peers:
            notes.append("not comparable: other clips, labels or files")
        if scored.scores.meta.get("partial"):
            notes.append("scores stop where the decision was certain")
        return Row(
            name=scored.name,
            numbers=tuple((summary[key], summary[f"{key}_se"]) for key in ("top1", "top5", "mean_class")),
            whisker=whisker,
            num_scored=summary["n"],
            num_requested=summary["requested"],
            facts=tuple(_value(signature, part) or "–" for part in columns),
            best=scored in marked and len(marked) < len(peers),
            notes=tuple(notes),
            signature=str(signature),
        )

    rows = tuple(row(scored) for scored in members)
    return Table(
        rows=rows,
        shown=rows[members.index(best or members[0])],
        columns=tuple(columns),
        common=tuple((part, values[part][0]) for part in parts if part not in columns),
        axis=(low, high),
        footnotes=_footnotes(members),
    )


def _value(signature: Signature, part: str) -> str:
    """A part of the signature for the table. The weights of a fusion stand below its name."""
    return str(getattr(signature, part)).split(",fuse-")[0]


def _footnotes(members: list[Scored]) -> tuple[str, ...]:
    notes = ["± is one standard error, the whisker a 95 % interval of top-1 (Wilson); both take clips as independent."]
    if drawn := {scored.summary["num_units"] for scored in members if scored.groups is not None}:
        videos = " or ".join(map(str, sorted(drawn)))
        notes = [
            f"± is one standard error, the whisker a 95 % interval of top-1; both draw the {videos} source videos."
        ]
    for rule in dict.fromkeys(scored.rule for scored in members):
        counts = [scored.summary for scored in members if scored.rule == rule]
        over = sorted({f"{summary['classes']} of {summary['num_classes']}" for summary in counts})
        notes.append(f"Mean class by the rule “{rule}”: {metrics.RULES[rule]} ({', '.join(over)}).")
    num_classes = len(members[0].scores.classes)
    if num_classes <= 5:
        notes.append(f"Top-5 says nothing here: there are only {num_classes} classes.")
    if any(scored.summary["n"] < scored.summary["requested"] for scored in members):
        rules = dict.fromkeys(scored.missing for scored in members)
        say = {"wrong": "count as wrong", "drop": "are left out of the numbers"}
        notes.append(f"Missing clips {' or '.join(say[rule] for rule in rules)}.")
    else:
        notes.append("No clip is missing.")
    if num_unlabelled := max(scored.summary["unlabelled"] for scored in members):
        notes.append(f"{_number(num_unlabelled, 'clip')} without a label: in no number.")
    return tuple(notes)


def _interval(scored: Scored) -> tuple[float, float]:
    """95 % interval of top-1."""
    if scored.groups is None:
        return _wilson(*_right_of(scored))
    low, high = metrics.intervals(scored.scores, scored.missing, scored.rule, scored.groups)["top1"]
    return low, high


def _right_of(scored: Scored) -> tuple[int, int]:
    _, _, ranks = metrics.outcomes(scored.scores, scored.missing)
    return int((ranks == 0).sum()), len(ranks)


def _bar(name: str, num_right: int, num: int) -> Bar:
    low, high = _wilson(num_right, num)
    return Bar(name=name, share=num_right / num, low=low, high=high, num_right=num_right, num=num)


def _wilson(num_right: int, num: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): unlike p ± 1.96 errors it stays inside 0..1 and has a width at 100 %."""
    share, z2 = num_right / num, Z95**2
    middle = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = Z95 / (1 + z2 / num) * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2))
    return max(0.0, middle - half), min(1.0, middle + half)


# --- comparisons --------------------------------------------------------------------------------------------


def _compared(members: list[Scored], across_copies: bool) -> tuple[list[Comparison], list[str]]:
    """Every pair that may be compared, the higher one second, with Holm's correction; and why the others may not."""
    if len(members) < 2:
        return [], []
    refused: list[str] = []
    rising = sorted(members, key=lambda scored: scored.top1 or 0)
    videos = [scored.groups for scored in members]
    found = compare.compare_all(
        [scored.scores for scored in rising],
        [scored.name for scored in rising],
        across_copies=across_copies,
        groups=None if None in videos else {clip_id: video for one in videos for clip_id, video in (one or {}).items()},
        refused=refused,
    )
    return found, refused


def _pairs(compared: list[Comparison], refused: list[str], best: Scored | None) -> Pairs | None:
    if not compared and not refused:
        return None
    num_differ = sum(pair.differs for pair in compared)
    are = "is" if num_differ == 1 else "are"
    finding = f"{num_differ} of {_number(len(compared), 'difference')} {are} beyond chance"
    if not compared:
        finding = "None of these may be compared"
    elif len(compared) == 1:
        finding = f"The difference is {'beyond' if num_differ else 'not beyond'} chance"
    elif not num_differ:
        finding = f"None of the {len(compared)} differences is beyond chance"
    low, high = min([0.0, *(pair.low for pair in compared)]), max([0.0, *(pair.high for pair in compared)])
    low, high = (math.floor(100 * low) / 100, math.ceil(100 * high) / 100) if low < high else (-0.01, 0.01)
    shown = [(best is not None and best.name in pair.names, _pair(pair, low, high)) for pair in compared]
    return Pairs(
        finding=finding,
        main=tuple(pair for of_best, pair in shown if of_best),
        others=tuple(pair for of_best, pair in shown if not of_best),
        axis=(low, high),
        refused=tuple(refused),
    )


def _pair(found: Comparison, low: float, high: float) -> Pair:
    places = [100 * (share - low) / (high - low) for share in (found.low, found.difference, found.high, 0.0)]
    first, second = found.names
    interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    details = []
    if found.only_a or found.only_b:
        details.append(
            f"Only {second} is right on {_number(found.only_b, 'clip')}, only {first} on {thousands(found.only_a)}; "
            + found.test
            + (f", p {_p_text(found.p)} before correction." if found.num_comparisons > 1 else ".")
        )
    if found.how or found.copy:
        details.append(f"From {first} to {second}: {_changes((*found.copy, *found.how))}.")
    if found.num_unscored:
        details.append(f"{compare.bounds_text(found).capitalize()}.")
    if found.with_:
        details.append(f"Caution, the programs differ: {_changes(found.with_)}.")
    return Pair(
        verdict=found.verdict,
        differs=found.differs,
        whisker=Whisker(
            low=places[0],
            value=places[1],
            high=places[2],
            zero=places[3],
            text=f"{100 * found.difference:+.1f} points (95{NBSP}%: {interval})",
        ),
        details=tuple(details),
    )


def _p_text(p: float) -> str:
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"


def _changes(differences: Sequence[Difference]) -> str:
    return ", ".join(f"{part.key} {part.a or 'not known'} → {part.b or 'not known'}" for part in differences)


# --- what was missing ---------------------------------------------------------------------------------------


def _missing(members: list[Scored]) -> tuple[NotScored, ...]:
    """One entry for all score sets that lack the same clips. A fusion's reasons are those of its parts: told once."""
    sharing: dict[frozenset[tuple[str, str | None]], list[Scored]] = {}
    for scored in members:
        clips = frozenset((str(clip["id"]), clip["label"]) for clip in scored.scores.missing)
        sharing.setdefault(clips, []).append(scored)
    return tuple(_not_scored(sharers, len(members)) for clips, sharers in sharing.items() if clips)


def _not_scored(sharers: list[Scored], num_members: int) -> NotScored:
    tellers = [scored for scored in sharers if "fused" not in scored.scores.meta] or sharers
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for scored in tellers:
        for clip in scored.scores.missing:
            clip_id, label = str(clip["id"]), clip["label"] or ""
            reasons.setdefault((clip_id, label), {})[str(clip["reason"] or "no reason given")] = None
    kinds = Counter(_kind(clip_id, next(iter(texts))) for (clip_id, _), texts in reasons.items())
    requested = sharers[0].summary["requested"]
    whom = "" if len(sharers) == num_members else f"{', '.join(scored.name for scored in sharers)}: "
    were = "was" if len(reasons) == 1 else "were"
    return NotScored(
        finding=f"{whom}{thousands(len(reasons))} of {_number(requested, 'clip')} {were} not scored",
        kinds=tuple(kinds.most_common()),
        clips=tuple((clip_id, label, " / ".join(texts)) for (clip_id, label), texts in sorted(reasons.items())),
    )


def _kind(clip_id: str, reason: str) -> str:
    """A reason without what is particular to one clip, so that equal ones add up."""
    text = reason.split(";")[0]
    text = re.sub(r"^(part \d+: )?(.*[/\\].*?: )?", "", text)  # the part of a fusion, the path that errors start with
    text = re.sub(rf"\S*{re.escape(clip_id)}\.\w+", "the file", text)
    return re.sub(r"\b\d+\b", "N", text).strip()


# --- streams ------------------------------------------------------------------------------------------------


def _parts(scored: Scored, members: list[Scored]) -> list[tuple[float, Scored | None, str]]:
    """(weight, score set where it is among the members, what to call it otherwise) of each part of a fusion."""
    known = {str(member.scores.signature): member for member in members}
    parts = []
    for part in scored.scores.meta.get("fused", ()):
        signature = Signature.parse(part["signature"])
        text = f"{signature.model} {signature.input}".strip() or "a stream"
        parts.append((float(part["weight"]), known.get(part["signature"]), text))
    return parts


def _streams(fused: Scored, members: list[Scored], compared: list[Comparison]) -> Streams | None:
    """What each stream gets right alone, what they share, and what the fusion makes of it."""
    parts = [(weight, part) for weight, part, _ in _parts(fused, members) if part]
    if len(parts) < 2:
        return None
    right, *rights = (_right_ids(scored) for scored in (fused, *(part for _, part in parts)))
    ids = sorted(set(right).intersection(*rights))
    if not ids:
        return None
    names = [part.name for _, part in parts]
    patterns: dict[tuple[bool, ...], list[bool]] = {}
    for clip_id in ids:
        patterns.setdefault(tuple(one[clip_id] for one in rights), []).append(right[clip_id])
    num_right = [sum(one[clip_id] for clip_id in ids) for one in (right, *rights)]
    best = int(np.argmax(num_right[1:]))
    gain = 100 * (num_right[0] - num_right[best + 1]) / len(ids)
    change = f"adds {gain:.1f} points to" if gain > 0 else f"takes {-gain:.1f} points from"
    pair = next((pair for pair in compared if set(pair.names) == {fused.name, names[best]}), None)
    doubt = ", which chance could do" if pair and not pair.differs and gain else ""
    return Streams(
        finding=f"{fused.name} {change if gain else 'changes nothing over'} its best part, {names[best]}{doubt}",
        bars=(
            *(
                _bar(f"{weight:g} × {part.name}", count, len(ids))
                for (weight, part), count in zip(parts, num_right[1:], strict=True)
            ),
            _bar(fused.name, num_right[0], len(ids)),
        ),
        num=len(ids),
        patterns=tuple(
            Pattern(text=_pattern_text(pattern, names), num=len(kept), num_fused_right=sum(kept))
            for pattern, kept in sorted(patterns.items(), reverse=True)
        ),
    )


def _right_ids(scored: Scored) -> dict[str, bool]:
    """Whether top-1 is right, by the id of each clip that counts."""
    ids, _, ranks = metrics.outcomes(scored.scores, scored.missing)
    return dict(zip(ids, (ranks == 0).tolist(), strict=True))


def _pattern_text(pattern: tuple[bool, ...], names: list[str]) -> str:
    if all(pattern):
        return "all are right" if len(pattern) > 2 else "both are right"
    if not any(pattern):
        return "none is right"
    return f"only {' and '.join(name for name, right in zip(names, pattern, strict=True) if right)}"


# --- what the views buy -------------------------------------------------------------------------------------


def _views(name: str, score_set: ScoreSet, videos: dict[str, str] | None, macs: Macs) -> Views | None:
    if score_set.views is None or score_set.views.shape[1] < 2 or "protocol" not in score_set.meta:
        return None
    found = curve.of(score_set, macs_per_view=macs(score_set), groups=videos)
    most = math.log2(max(2, found.points[-1].num_views))
    low = math.floor(20 * min(point.top1_low for point in found.points)) / 20
    high = math.ceil(20 * max(point.top1_high for point in found.points)) / 20

    def height(share: float) -> float:
        return 100 * (high - share) / (high - low)

    def mark(point: curve.Point) -> Mark:
        views = _number(point.num_views, "view")
        interval = f"{percent(point.top1_low, 1)} to {percent(point.top1_high, 1)}"
        return Mark(
            x=100 * math.log2(point.num_views) / most,
            y=height(point.top1),
            low=height(point.top1_low),
            high=height(point.top1_high),
            text=f"{views}: {percent(point.top1, 1)} % (95 % interval {interval})",
        )

    lines: dict[str, list[Mark]] = {}
    for point in found.points:
        crops = "centre crop" if point.num_crops == 1 else f"{point.num_crops} crops"
        lines.setdefault(crops, []).append(mark(point))
    last = found.points[-1].num_views
    ticks = sorted({1, 2, 5, 10, 25, last} & set(range(1, last + 1)))
    ticks = [tick for tick in ticks if tick == last or tick * 1.5 < last]
    return Views(
        finding=f"{name}: {found.headline[0].lower()}{found.headline[1:]}",
        about=f"{found.detail}." if found.detail else "",
        lines=tuple((crops, tuple(marks)) for crops, marks in lines.items()),
        x_ticks=tuple((100 * math.log2(tick) / most, str(tick)) for tick in ticks),
        y_ticks=tuple((height(share), percent(share, 0)) for share in _ticks(low, high)),
        points=found.points,
        notes=found.notes,
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round shares from ``low`` to ``high``, five or fewer."""
    step = next(step for step in (1, 2, 5, 10, 20, 25, 50) if round(100 * (high - low)) / step <= 4 or step == 50)
    return [at / 100 for at in range(0, 101, step) if round(100 * low) <= at <= round(100 * high)]


# --- class by class -----------------------------------------------------------------------------------------


def _classes(scored: Scored) -> Classes | None:
    _, labels, ranks = metrics.outcomes(scored.scores, scored.missing)
    if not len(labels):
        return None
    counts = np.bincount(labels, minlength=len(scored.scores.classes))
    rights = np.bincount(labels[ranks == 0], minlength=len(scored.scores.classes))
    classes = list(zip(scored.scores.classes, rights.tolist(), counts.tolist(), strict=True))
    bars = [_bar(name, num_right, num) for name, num_right, num in classes if num]
    bars.sort(key=lambda bar: -bar.share)
    best, worst = bars[0], bars[-1]
    least, most = f"{percent(worst.share, 0)}{NBSP}%", f"{percent(best.share, 0)}{NBSP}%"
    finding = f"Classes range from {least} ({worst.name}) to {most} ({best.name})"
    if best.share == worst.share:
        finding = f"All classes have {most}" if len(bars) > 1 else "All clips are of one class"
    lists: tuple[tuple[str, tuple[Bar, ...]], ...] = (("", tuple(bars)),)
    if len(bars) > ALL_CLASSES:
        lists = (
            (f"Worst {BEST_AND_WORST} of {len(bars)}", tuple(bars[: -BEST_AND_WORST - 1 : -1])),
            (f"Best {BEST_AND_WORST} of {len(bars)}", tuple(bars[:BEST_AND_WORST])),
        )
    without = tuple(name for name, _, num in classes if not num)
    return Classes(finding=finding, lists=lists, without_clips=without)


def _confusion(scored: Scored) -> Confusion | None:
    rows = np.flatnonzero(scored.scores.labels >= 0)
    if not len(rows):
        return None
    names = scored.scores.classes
    counts = metrics.confusion(scored.scores.scores[rows], scored.scores.labels[rows])
    totals = counts.sum(axis=1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED_PAIRS]
    places = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    pairs = tuple((names[true], names[guess], int(wrong[true, guess]), int(totals[true])) for true, guess in places)
    finding = "No clip was taken for another class"
    if pairs:
        true_name, guessed, count, total = pairs[0]
        finding = f"Most often confused: {true_name} taken for {guessed}, {count} of {_number(total, 'clip')}"
    cells = None
    if len(names) <= HEAT_MAP_CLASSES:
        shares = np.rint(100 * counts / np.maximum(totals, 1)[:, None]).astype(int)
        cells = tuple(
            tuple(zip(row.tolist(), of_100.tolist(), strict=True)) for row, of_100 in zip(counts, shares, strict=True)
        )
    return Confusion(finding=finding, classes=names, cells=cells, pairs=pairs)


def _worst(scored: Scored, pictures: Pictures) -> Worst | None:
    """The wrong clips whose predicted class had the highest score. Clips without a prediction are none of them."""
    found = scored.scores
    rows = np.flatnonzero((found.labels >= 0) & (metrics.predictions(found.scores) >= 0))
    table = found.scores[rows].astype(np.float64)
    if found.kind == "logit":
        table = fuse.softmax(table)
    else:  # the probabilities of a fusion sum to its weights, which may be 1 and -1
        sums = table.sum(axis=1, keepdims=True)
        table /= np.where(sums > 1e-6, sums, 1)
    guesses, labels = metrics.predictions(found.scores[rows]), found.labels[rows]
    confidence = table[np.arange(len(rows)), guesses]
    wrong = np.flatnonzero(guesses != labels)
    if not len(wrong):
        return None
    surest = sorted(wrong.tolist(), key=lambda place: (-confidence[place], found.ids[rows[place]]))[:WORST_CLIPS]
    made = pictures(found, [found.ids[rows[place]] for place in surest])
    clips = tuple(
        WorstClip(
            id=found.ids[rows[place]],
            picture=made.get(found.ids[rows[place]], ""),
            label=found.classes[labels[place]],
            predicted=found.classes[guesses[place]],
            score=float(confidence[place]),
            label_score=float(table[place, labels[place]]),
        )
        for place in surest
    )
    are = "is" if len(wrong) == 1 else "are"
    surest_of = f"the surest with {percent(clips[0].score, 0)}{NBSP}% for {clips[0].predicted}"
    finding = f"{thousands(len(wrong))} of {_number(len(rows), 'scored clip')} {are} wrong, {surest_of}"
    without = ""
    if not made:
        without = "No pictures of them: their videos were not found; python -m evalkit report --videos DIR says where."
    elif len(made) < len(clips):
        without = f"No picture of {len(clips) - len(made)} of them: the video was not found or cannot be read."
    return Worst(finding=finding, clips=clips, pictures=without)


def thousands(count: int) -> str:
    """``9999``, ``19 796`` with a narrow space that does not break."""
    return f"{count:,}".replace(",", "\u202f") if count >= 10_000 else str(count)


def _number(count: int, one: str, many: str | None = None) -> str:
    """``1 clip``, ``3 clips``."""
    return f"{thousands(count)} {one if count == 1 else many or one + 's'}"
