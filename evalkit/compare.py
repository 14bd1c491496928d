"""May two numbers stand side by side, do they differ by more than chance, and what was done differently.

Everything is paired: both sides scored the same clips, so only the clips that one side gets right and the other wrong
carry information. What is resampled is what is independent: clips, or with ``groups`` the videos that they were cut
from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from datakit.errors import NotComparable, UsageError

from . import metrics, signature
from .groups import units
from .resample import LEVEL, NUM_RESAMPLES, chunks, interval, resample_clips, resample_groups
from .scores import ScoreSet, some

Metric = Literal["top1", "mean_class"]

METRICS = {"top1": "top-1", "mean_class": "mean class accuracy"}
POWER = 0.80
SMALLEST_RULE = (
    "Of the units that differ between the sides, the smallest lead that the exact sign test finds in 80 % of the cases "
    "at the 5 % level, divided by the number of comparisons (Holm's strictest), as a share of all units; where units "
    "weigh differently, (z of that level + 0.84) x sqrt(sum of squared differences)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A part of the signature that is not the same on both sides."""

    key: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """b against a on the same clips; accuracies, errors and differences as fractions of 1.

    low, high     95 % interval of ``difference`` = b - a (paired bootstrap); holds 0 where ``p`` is not below 0.05
    only_a        clips that a gets right and b wrong;  only_b the other way round
    p             two-sided, of ``test``;  p_holm the same after Holm's correction over ``num_comparisons``
    smallest      the smallest difference that would have been seen, by ``SMALLEST_RULE``
    bounds        least and most that the difference could be over all ``num_asked`` clips that either side was asked
                  for, however the ``num_unscored`` that not both scored had come out
    what, copy, how, with_  the parts of the signatures that differ; ``what`` only with ``common=True``
    num_other_files  clips whose files are not the same on both sides; ``None`` where a side has no hashes of its files
    copy_known    whether both sides have a fingerprint of their files
    """

    names: tuple[str, str]
    signatures: tuple[str, str]
    metric: Metric
    n: int
    unit: Literal["clip", "group"]
    num_units: int
    a: float
    a_se: float | None
    b: float
    b_se: float | None
    difference: float
    low: float
    high: float
    only_a: int
    only_b: int
    test: str
    p: float
    p_holm: float
    num_comparisons: int = 1
    smallest: float
    bounds: tuple[float, float]
    num_unscored: int
    num_asked: int
    what: tuple[Difference, ...]
    copy: tuple[Difference, ...]
    num_other_files: int | None
    copy_known: bool
    how: tuple[Difference, ...]
    with_: tuple[Difference, ...]

    @property
    def differs(self) -> bool:
        """Is the difference larger than chance would make at the 5 % level, all comparisons together?"""
        return self.p_holm < LEVEL

    @property
    def verdict(self) -> str:
        """One sentence."""
        first, second = self.names
        sign = -1 if self.differs and self.difference < 0 else 1
        low, high = sorted((100 * sign * self.low, 100 * sign * self.high))
        measured = (
            f"{100 * sign * self.difference:.2f} points of {METRICS[self.metric]} "
            f"(95 % interval {low:.2f} to {high:.2f}; {_p_text(self.p_holm)}"
            + (f" corrected for {self.num_comparisons} comparisons)" if self.num_comparisons > 1 else ")")
        )
        if self.differs:
            better, other = (second, first) if sign > 0 else (first, second)
            sentence = f"{better} is better than {other} by {measured}."
        elif not self.only_a and not self.only_b:
            sentence = f"{first} and {second} are right and wrong on the same {self.n} clips."
        else:
            sentence = (
                f"No difference beyond chance between {first} and {second}: {measured}. One of "
                f"{100 * self.smallest:.2f} points would have been seen in 8 of 10 such tests."
            )
        return f"{sentence} {self.copy_text}".rstrip()

    @property
    def copy_text(self) -> str:
        """What must be said of the files that were scored; "" where they are the same."""
        if self.copy and self.num_other_files:
            return f"The files they scored are different copies: {self.num_other_files} of them differ."
        if self.copy:
            return "The files they scored are different copies."
        return "" if self.copy_known else "Whether they scored the same copy of the files is not known."

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "differs": self.differs, "verdict": self.verdict, "smallest_rule": SMALLEST_RULE}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Paired:
    """Two sides that may be compared. ``labels``, ``change`` (1: only b is right, -1: only a): int64 [N] of ``ids``."""

    names: tuple[str, str]
    metric: Metric
    a: ScoreSet
    b: ScoreSet
    ids: list[str]
    labels: NDArray[np.int64]
    change: NDArray[np.int64]
    missing: metrics.Missing
    what: tuple[Difference, ...]
    copy: tuple[Difference, ...]
    bounds: tuple[float, float]
    num_unscored: int
    num_asked: int


def compare(
    a: ScoreSet,
    b: ScoreSet,
    *,
    names: tuple[str, str] = ("a", "b"),
    metric: Metric = "top1",
    common: bool = False,
    across_copies: bool = False,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare b with a, clip by clip. Clips missing on both sides count as wrong on both, unless a run dropped them.

    common         compare on the clips that both scored, when they are not the same
    across_copies  compare although the files were not the same
    groups         clip id -> source video: clips of one video are taken or left together
    Raises ``NotComparable`` when WHAT was measured or the copy differs and that was not asked for; the message ends
    with what to type.
    """
    return _measured(_pair(a, b, names, metric, common, across_copies), groups, seed, num_comparisons=1)


def compare_all(
    score_sets: Sequence[ScoreSet],
    names: Sequence[str],
    *,
    metric: Metric = "top1",
    common: bool = False,
    across_copies: bool = False,
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
    refused: list[str] | None = None,
) -> list[Comparison]:
    """Every pair, in the order given, as ``compare`` does, with Holm's correction over all of them.

    ``refused``: a list that takes the reasons of pairs that may not be compared, in place of ``NotComparable``.
    """
    if len(score_sets) < 2:
        raise UsageError("a comparison needs two score files or more: python -m evalkit compare a b")
    pairs = []
    for i, j in itertools.combinations(range(len(score_sets)), 2):
        try:
            pairs.append(_pair(score_sets[i], score_sets[j], (names[i], names[j]), metric, common, across_copies))
        except NotComparable as error:
            if refused is None:
                raise
            refused.append(str(error))
    found = [_measured(pair, groups, seed, num_comparisons=len(pairs)) for pair in pairs]
    return [replace(one, p_holm=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def _pair(
    a: ScoreSet, b: ScoreSet, names: tuple[str, str], metric: Metric, common: bool, across_copies: bool
) -> _Paired:
    """Raises ``NotComparable``."""
    if metric not in METRICS:
        raise UsageError(f"--metric {metric}: type --metric {' or --metric '.join(METRICS)}")
    num_asked, num_unscored, bounds = _bounds(a, b, metric)
    what: tuple[Difference, ...] = ()
    if common:
        what = differences(a, b, signature.WHAT)
        a, b = _shared(a, b, names)
    else:
        _check_what(a, b, names)
    copy = copies_differing(a, b)
    if copy and not across_copies:
        num_other = num_other_files(a, b)
        counted = f" ({num_other} of {len(a.ids)} files differ)" if num_other else ""
        raise NotComparable(
            f"{names[0]} and {names[1]} scored different copies of the files: {_listed(copy, names)}{counted}. "
            "To compare all the same, type --across-copies"
        )
    missing: metrics.Missing = "drop" if "drop" in (a.signature.missing, b.signature.missing) else "wrong"
    labels, found_a, found_b, ids = _outcomes(a, b, names, missing)
    return _Paired(
        names=names, metric=metric, a=a, b=b, ids=ids, labels=labels, missing=missing, what=what, copy=copy,
        change=(found_b == 0).astype(np.int64) - (found_a == 0), bounds=bounds, num_unscored=num_unscored,
        num_asked=num_asked,
    )  # fmt: skip


def _measured(pair: _Paired, groups: Mapping[str, str] | None, seed: int, num_comparisons: int) -> Comparison:
    a, b, change, labels = pair.a, pair.b, pair.change, pair.labels
    unit_of_clip = units(pair.ids, groups)
    unit_change = shares(labels, pair.metric) * change.astype(np.float64)
    if unit_of_clip is not None:
        unit_change = np.bincount(unit_of_clip, unit_change).astype(np.float64)
    rng = np.random.default_rng(seed)
    p = _sign_test(unit_change, rng)
    strata = labels if pair.metric == "mean_class" else np.zeros_like(labels)
    if unit_of_clip is None:
        draws = resample_clips(change, strata, rng)
    else:
        draws = resample_groups(change, strata, unit_of_clip, rng)
    low, high = interval(float(unit_change.sum()), draws, len(unit_change))
    if p >= LEVEL:  # of a few differing clips the exact test says less than their spread does
        low, high = min(low, 0.0), max(high, 0.0)
    numbers_a, numbers_b = (metrics.summary(side, pair.missing, groups=groups) for side in (a, b))
    return Comparison(
        names=pair.names,
        signatures=(str(a.signature), str(b.signature)),
        metric=pair.metric,
        n=len(pair.ids),
        unit="clip" if groups is None else "group",
        num_units=len(unit_change),
        a=numbers_a[pair.metric],
        a_se=numbers_a[f"{pair.metric}_se"],
        b=numbers_b[pair.metric],
        b_se=numbers_b[f"{pair.metric}_se"],
        difference=float(unit_change.sum()) + 0.0,  # never -0.00
        low=low,
        high=high,
        only_a=int((change < 0).sum()),
        only_b=int((change > 0).sum()),
        test="exact McNemar" if pair.metric == "top1" and groups is None else "sign flips",
        p=p,
        p_holm=p,
        num_comparisons=num_comparisons,
        smallest=_smallest(unit_change, LEVEL / num_comparisons),
        bounds=pair.bounds,
        num_unscored=pair.num_unscored,
        num_asked=pair.num_asked,
        what=pair.what,
        copy=pair.copy,
        num_other_files=num_other_files(a, b),
        copy_known=signature.fingerprinted(a.signature.media) and signature.fingerprinted(b.signature.media),
        how=differences(a, b, signature.HOW),
        with_=differences(a, b, signature.WITH),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of any false alarm among all tests stays below the level."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def describe(found: Comparison) -> str:
    """The terminal's text of a comparison."""
    width = max(map(len, found.names))
    lines = [
        f"{name:{width}}  {METRICS[found.metric]} {metrics.percent(value, error)}"
        for name, value, error in zip(found.names, (found.a, found.b), (found.a_se, found.b_se), strict=True)
    ]
    units = f"{found.n} clips" + (f" of {found.num_units} source videos" if found.unit == "group" else "")
    lines += [
        f"difference  {100 * found.difference:+.2f} points, "
        f"95 % interval {100 * found.low:+.2f} to {100 * found.high:+.2f}",
        f"differing   {found.only_a} clips only the first gets right, {found.only_b} only the second, of {units}",
        f"test        {found.test}: {_p_text(found.p)}"
        + (f", {_p_text(found.p_holm)} after Holm over {found.num_comparisons}" if found.num_comparisons > 1 else ""),
        f"seen from   {100 * found.smallest:.2f} points (80 % power at the 5 % level"
        + (f" over {found.num_comparisons} comparisons)" if found.num_comparisons > 1 else ")"),
    ]
    if found.num_unscored:
        lines.append(f"bounds      {bounds_text(found)}")
    for title, parts in (("what", found.what), ("copy", found.copy), ("how", found.how), ("caution", found.with_)):
        lines += [f"{title:11} {part.key}: {part.a or 'not known'} -> {part.b or 'not known'}" for part in parts]
    return "\n".join([*lines, f"verdict     {found.verdict}"])


def bounds_text(found: Comparison) -> str:
    """What the clips that not both sides scored could make of the difference."""
    low, high = (100 * bound for bound in found.bounds)
    clips = "clip that one side or both" if found.num_unscored == 1 else "clips that one side or both"
    return (
        f"however the {found.num_unscored} {clips} could not score had come out, the difference over all "
        f"{found.num_asked} would be between {low:+.2f} and {high:+.2f} points"
    )


# --- what may be compared --------------------------------------------------------------------------------------------


def differences(a: ScoreSet, b: ScoreSet, keys: Sequence[str]) -> tuple[Difference, ...]:
    """Those of the signatures' parts ``keys`` that are not the same."""
    pairs = ((key, str(getattr(a.signature, key)), str(getattr(b.signature, key))) for key in keys)
    return tuple(Difference(key=key, a=left, b=right) for key, left, right in pairs if left != right)


def copies_differing(a: ScoreSet, b: ScoreSet) -> tuple[Difference, ...]:
    """COPY, where the sides looked at different files; whatever the folders are called, the hashes of the files decide.

    A fusion of streams looked at the files of each of its parts.
    """
    if num_other_files(a, b) == 0:
        return ()
    copies = [set(side.signature.media.split("+")) for side in (a, b)]
    if copies[0] < copies[1] or copies[1] < copies[0]:
        return ()
    return differences(a, b, signature.COPY)


def num_other_files(a: ScoreSet, b: ScoreSet) -> int | None:
    """Of the clips that both scored, how many were other files; ``None`` where a side has no hashes of them."""
    if a.files is None or b.files is None:
        return None
    files_b = dict(zip(b.ids, b.files, strict=True))
    return sum(files_b.get(clip_id, sha) != sha for clip_id, sha in zip(a.ids, a.files, strict=True))


def _listed(differences: Sequence[Difference], names: tuple[str, str]) -> str:
    return "; ".join(
        f"{part.key} is {part.a or 'not known'} in {names[0]} and {part.b or 'not known'} in {names[1]}"
        for part in differences
    )


def _check_what(a: ScoreSet, b: ScoreSet, names: tuple[str, str]) -> None:
    differing = differences(a, b, signature.WHAT)
    absent_a, absent_b = ({str(entry["id"]) for entry in side.missing} for side in (a, b))
    if not differing and absent_a == absent_b:
        return
    if differing:
        reason = _listed(differing, names)
    else:
        reason = f"only one of them was asked for {some(absent_a ^ absent_b)}, which could not be scored"
    num_shared = len(set(a.ids) & set(b.ids))
    if not num_shared:
        raise NotComparable(f"{names[0]} and {names[1]} share no clip: {reason}")
    raise NotComparable(
        f"{names[0]} and {names[1]} are not numbers of the same thing: {reason}. "
        f"To compare on the {num_shared} clips that both scored, type --common"
    )


def _shared(a: ScoreSet, b: ScoreSet, names: tuple[str, str]) -> tuple[ScoreSet, ScoreSet]:
    """Both sides with only the clips that both scored, and nothing missing."""
    rows_a, rows_b = ({clip_id: row for row, clip_id in enumerate(side.ids)} for side in (a, b))
    ids = [clip_id for clip_id in a.ids if clip_id in rows_b]
    if not ids:
        raise NotComparable(f"{names[0]} and {names[1]} share no clip")
    return (
        replace(a.select([rows_a[clip_id] for clip_id in ids]), missing=[]),
        replace(b.select([rows_b[clip_id] for clip_id in ids]), missing=[]),
    )


def _outcomes(
    a: ScoreSet, b: ScoreSet, names: tuple[str, str], missing: metrics.Missing
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], list[str]]:
    """(labels, ranks in a, ranks in b, ids) of the clips that count. Labels are told by class name, not by index: the
    two sides may hold their classes in different orders, or more of them."""
    ids, labels, ranks_a = metrics.outcomes(a, missing)
    ids_b, labels_b, ranks_b = metrics.outcomes(b, missing)
    row_b = {clip_id: row for row, clip_id in enumerate(ids_b)}
    differing = [
        clip_id
        for clip_id, label in zip(ids, labels, strict=True)
        if clip_id not in row_b or a.classes[label] != b.classes[labels_b[row_b[clip_id]]]
    ] + sorted(set(ids_b) - set(ids))
    if differing:
        raise NotComparable(
            f"{names[0]} and {names[1]} disagree on the label of {len(differing)} clips ({some(differing)}); "
            "score both with the same labels"
        )
    if not ids:
        raise NotComparable(f"{names[0]} and {names[1]} share no clip that has a label")
    return labels, ranks_a, ranks_b[[row_b[clip_id] for clip_id in ids]], ids


def _bounds(a: ScoreSet, b: ScoreSet, metric: Metric) -> tuple[int, int, tuple[float, float]]:
    """(clips asked for, those that not both scored, bounds of the difference over all that were asked for).

    A clip that a side did not score could have been right or wrong there:

        a      b         the clip's change
        right  unknown   -1 .. 0
        wrong  unknown    0 .. 1
        both unknown     -1 .. 1
    """
    names: dict[str, str] = {}
    rights: list[dict[str, bool]] = []
    for side in (a, b):
        ids, labels, found = metrics.outcomes(side, "drop")
        rights.append(dict(zip(ids, (found == 0).tolist(), strict=True)))
        names |= {clip_id: side.classes[label] for clip_id, label in zip(ids, labels.tolist(), strict=True)}
        names |= {str(entry["id"]): entry["label"] for entry in side.missing if entry["label"] is not None}
    if not names:
        return 0, 0, (0.0, 0.0)
    low, high, num_unscored = np.zeros(len(names)), np.zeros(len(names)), 0
    for place, clip_id in enumerate(names):
        least_a, most_a, least_b, most_b = (
            right.get(clip_id, unknown) for right in rights for unknown in (False, True)
        )
        low[place], high[place] = least_b - most_a, most_b - least_a
        num_unscored += any(clip_id not in right for right in rights)
    share_of_clip = shares(np.unique(list(names.values()), return_inverse=True)[1].astype(np.int64), metric)
    return len(names), num_unscored, (float(low @ share_of_clip), float(high @ share_of_clip))


# --- how much is chance ----------------------------------------------------------------------------------------------


def shares(labels: NDArray[np.int64], metric: Metric) -> NDArray[np.float64]:
    """float64 [N]: what each clip adds to the number when it is right."""
    if metric == "top1":
        return np.full(len(labels), 1 / len(labels))
    _, class_of_clip, count = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 / (len(count) * count[class_of_clip])


def _sizes(unit_change: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(sizes, counts) of the changes that are not 0. Equal sums of thirds and sevenths may differ in the last bits."""
    sizes, counts = np.unique(np.abs(unit_change).round(12), return_counts=True)
    return sizes[sizes > 0], counts[sizes > 0].astype(np.int64)


def changed(change: NDArray[np.int64], unit_of_clip: NDArray[np.int64] | None = None, seed: int = 0) -> float:
    """Two-sided p that a ``change`` (1, 0 or -1 a clip) is none: McNemar's exact test, by units that of sign flips."""
    by_unit = change / len(change)
    if unit_of_clip is not None:
        by_unit = np.bincount(unit_of_clip, by_unit).astype(np.float64)
    return _sign_test(by_unit, np.random.default_rng(seed))


def _sign_test(unit_change: NDArray[np.float64], rng: np.random.Generator) -> float:
    """Two-sided p that the sides are alike: then every unit's change is as likely with the opposite sign.

    Units whose changes are equally large are exchangeable, so their signs are drawn as one binomial number. When all
    are equally large (top-1 over clips) the distribution is that number's, and the test is McNemar's exact one.
    """
    sizes, counts = _sizes(unit_change)
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        gains = int((unit_change > sizes[0] / 2).sum())
        return min(1.0, 2 * float(special.bdtr(min(gains, counts[0] - gains), counts[0], 0.5)))
    extreme = abs(unit_change.sum()) - 1e-9
    hits = 0
    for rows in chunks(len(sizes)):
        flipped = (2 * rng.binomial(counts, 0.5, size=(rows, len(sizes))) - counts) @ sizes
        hits += int((np.abs(flipped) >= extreme).sum())
    return (1 + hits) / (1 + NUM_RESAMPLES)


def _smallest(unit_change: NDArray[np.float64], level: float = LEVEL) -> float:
    """The smallest difference that would have been seen: ``SMALLEST_RULE``."""
    sizes, counts = _sizes(unit_change)
    if len(sizes) > 1:
        z = float(special.ndtri(1 - level / 2) + special.ndtri(POWER))
        return z * math.sqrt(float(np.square(unit_change).sum()))
    size = float(sizes[0]) if len(sizes) else 1 / len(unit_change)
    # With five differing units, all for one side, p is still 2 * 0.5**5 = 0.0625: six have to differ at the 5 % level.
    num_differing = max(math.ceil(math.log2(2 / level)), int(counts[0]) if len(sizes) else 0)
    tails = special.bdtr(np.arange(num_differing // 2), num_differing, 0.5)
    most_against = int((tails <= level / 2).sum()) - 1
    share_against = float(special.bdtri(most_against, num_differing, POWER))
    return size * num_differing * (1 - 2 * share_against)


def _p_text(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-4 else f"p < {10.0 ** math.ceil(math.log10(max(p, 1e-300))):.0e}"
