"""Numbers from scores: top-k, mean class accuracy, per class, confusion, each with one stated rule for ties and gaps.

Ties go to the class with the lower index, everywhere: top-1 is exactly what ``argmax`` says. A row with a NaN has no
prediction and is wrong at every k. (scikit-learn's top-1 gives a tie to the higher index; mean over classes and
confusion are scikit-learn's, tested to be, without its 2 seconds of import before every number.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datakit.errors import DataError

from . import groups as source_videos
from .resample import LEVEL, NUM_RESAMPLES, interval, resample_clips, resample_groups
from .scores import ScoreSet
from .signature import Signature

Missing = Literal["wrong", "drop"]
Rule = Literal["present", "mmaction2"]

RULES: dict[str, str] = {
    "present": "mean over the classes that have test clips",
    "mmaction2": "mean over the classes seen in labels or predictions",
}
NUM_CONFUSED = 20
NEVER = np.iinfo(np.int64).max  # the rank of a label that no k reaches


def top_k(scores: ArrayLike, labels: ArrayLike, k: int) -> float:
    """Share of rows whose label is among the k best classes; NaN when there is no row.

    scores [N, C], labels [N] in 0..C-1. With k >= C every row is right that has a prediction.
    Raises ``DataError`` when labels and scores do not fit.
    """
    if k < 1:
        raise ValueError(f"top-{k}: k is at least 1")
    return _mean(ranks(scores, labels) < k)


def mean_class(scores: ArrayLike, labels: ArrayLike, rule: Rule = "present") -> float:
    """Mean over classes of the share of a class's rows that are predicted right; NaN when there is no row.

    rule "present"    over the classes that have rows (scikit-learn's balanced accuracy)
         "mmaction2"  over those and the classes that are only predicted, which count 0
                      (mmaction2 v0.24.1 mmaction/core/evaluation/accuracy.py, mean_class_accuracy)
    """
    scores, labels = _checked(scores, labels)
    accuracy, count = per_class(scores, labels)
    return _mean(accuracy[_averaged(count, predictions(scores), rule)])


def confusion(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.int64]:
    """int64 [C, C]: how often a row of class i (rows) was predicted as class j (columns). NaN rows are left out."""
    scores, labels = _checked(scores, labels)
    predicted, num_classes = predictions(scores), scores.shape[1]
    known = predicted >= 0
    cells = np.bincount(labels[known] * num_classes + predicted[known], minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def per_class(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(accuracy float64 [C], rows int64 [C]) of each class; the accuracy of a class without rows is NaN."""
    scores, labels = _checked(scores, labels)
    return _per_class(labels, ranks(scores, labels), scores.shape[1])


def confused(scores: ArrayLike, labels: ArrayLike, most: int = NUM_CONFUSED) -> list[tuple[int, int, int, float]]:
    """The pairs of classes that are taken for each other most: (class, predicted as, rows, share of the class's rows),

    the most rows first, then the largest share, then the lower indices. The two directions of a pair are two entries.
    """
    cells = confusion(scores, labels)
    _, count = per_class(scores, labels)
    np.fill_diagonal(cells, 0)
    pairs = [
        (int(label), int(predicted), int(cells[label, predicted]), float(cells[label, predicted] / count[label]))
        for label, predicted in np.argwhere(cells)
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[3], pair[0], pair[1]))[:most]


def predictions(scores: ArrayLike) -> NDArray[np.int64]:
    """int64 [N]: the best class of each row, the lower index on ties, -1 for a row with a NaN."""
    table = np.asarray(scores)
    best = np.argmax(table, axis=1) if table.shape[1] else np.full(len(table), -1)
    return np.where(np.isnan(table).any(axis=1), -1, best).astype(np.int64)


def ranks(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.int64]:
    """int64 [N]: how many classes come before the label (0 = predicted), ``NEVER`` for a row with a NaN.

    labels [1]     scores  0.3  0.3  0.4       ->  2: class 2 is better, class 0 ties and has the lower index
    """
    table, labels = _checked(scores, labels)
    own = table[np.arange(len(labels)), labels][:, None]
    lower_index = np.arange(table.shape[1]) < labels[:, None]
    before = (table > own).sum(axis=1) + ((table == own) & lower_index).sum(axis=1)
    return np.where(np.isnan(table).any(axis=1), NEVER, before).astype(np.int64)


def outcomes(score_set: ScoreSet, missing: Missing = "wrong") -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """(ids, labels int64 [M], ranks int64 [M]) of the clips that count: those with a label, and under "wrong" also the
    missing ones, whose rank is ``NEVER``."""
    rows = np.flatnonzero(score_set.labels >= 0)
    ids = [score_set.ids[row] for row in rows]
    labels = score_set.labels[rows]
    found = ranks(score_set.scores[rows], labels)
    if missing == "wrong":
        index = {name: position for position, name in enumerate(score_set.classes)}
        absent = [
            (str(entry["id"]), index[entry["label"]]) for entry in score_set.missing if entry["label"] is not None
        ]
        ids += [clip_id for clip_id, _ in absent]
        labels = np.concatenate([labels, np.array([label for _, label in absent], dtype=np.int64)])
        found = np.concatenate([found, np.full(len(absent), NEVER)])
    return ids, labels, found


def summary(
    score_set: ScoreSet, missing: Missing = "wrong", rule: Rule = "present", groups: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The numbers of a run, as fractions of 1, each with its standard error; None where nothing can be said.

    n           clips scored               requested   clips asked for
    unlabelled  clips without a label: in no number
    counted     clips the numbers are over: those with a label, under missing="wrong" with the missing ones as wrong
    top1, top5  and mean_class with ``*_se``; ``classes`` of ``num_classes`` is how many the mean is over
    unit        "clip", or "video" with ``groups`` (clip id -> source video); ``num_units`` of them were drawn

    The error of top-k is that of a share, sqrt(p(1-p)/counted); of the mean over classes see ``_mean_class_error``.
    Both take clips as independent. With ``groups`` errors are the spread of the numbers over draws of whole videos.
    """
    if missing not in ("wrong", "drop"):
        raise ValueError(f"missing={missing!r}: it is 'wrong' or 'drop'")
    ids, labels, found = outcomes(score_set, missing)
    accuracy, count = _per_class(labels, found, len(score_set.classes))
    labelled = score_set.labels >= 0
    averaged = _averaged(count, predictions(score_set.scores[labelled]), rule)
    top1, top5 = _mean(found == 0), _mean(found < 5)
    numbers = {
        "top1": top1,
        "top1_se": _share_error(top1, len(ids)),
        "top5": top5,
        "top5_se": _share_error(top5, len(ids)),
        "mean_class": _mean(accuracy[averaged]),
        "mean_class_se": _mean_class_error(accuracy, count, averaged),
    }
    units = source_videos.units(ids, groups)
    num_units = len(ids) if units is None else len(np.unique(units))
    if units is not None:
        draws = _draws(labels, found, averaged, units, seed=0) if num_units > 1 else {}
        errors = {key: float(values.std()) for key, values in draws.items()}
        numbers |= {f"{key}_se": errors.get(key, float("nan")) for key in ("top1", "top5", "mean_class")}
    return {
        "n": len(score_set.ids),
        "requested": len(score_set.ids) + len(score_set.missing),
        "unlabelled": int((~labelled).sum()) + sum(entry["label"] is None for entry in score_set.missing),
        "counted": len(ids),
        **{name: None if np.isnan(value) else value for name, value in numbers.items()},
        "mean_class_rule": rule,
        "classes": int(averaged.sum()),
        "num_classes": len(score_set.classes),
        "missing": missing,
        "unit": "clip" if groups is None else "video",
        "num_units": num_units,
    }


def intervals(
    score_set: ScoreSet,
    missing: Missing = "wrong",
    rule: Rule = "present",
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """95 % bootstrap intervals (low, high) of top1, top5 and mean_class; the same seed gives the same numbers.

    Clips are drawn, for the mean over classes within each class, so that every class stays in; with ``groups`` (clip id
    -> source video) whole videos are drawn instead, and a class that no drawn video has is left out of that draw. How
    draws become an interval: ``resample.interval``. None where there is no clip.
    """
    numbers = summary(score_set, missing, rule, groups)
    ids, labels, found = outcomes(score_set, missing)
    averaged = _averaged(
        np.bincount(labels, minlength=len(score_set.classes)),
        predictions(score_set.scores[score_set.labels >= 0]),
        rule,
    )
    bounds: dict[str, tuple[float, float] | None] = dict.fromkeys(("top1", "top5", "mean_class"))
    if ids:
        for key, draws in _draws(labels, found, averaged, source_videos.units(ids, groups), seed).items():
            low, high = interval(numbers[key], draws, numbers["num_units"])
            bounds[key] = (max(0.0, low), min(1.0, high))
    return {
        **bounds,
        "level": 1 - LEVEL,
        "unit": numbers["unit"],
        "num_units": numbers["num_units"],
        "draws": NUM_RESAMPLES,
        "seed": seed,
    }


def rules(score_set: ScoreSet) -> tuple[Missing, Rule]:
    """The rules for missing clips and for the mean over classes that a run was made with, from its signature."""
    return (
        "drop" if score_set.signature.missing == "drop" else "wrong",
        "mmaction2" if "mean_class-mmaction2" in score_set.signature.metric else "present",
    )


def document(
    score_set: ScoreSet, missing: Missing = "wrong", rule: Rule = "present", groups: str = "auto"
) -> dict[str, Any]:
    """What ``metrics.json`` holds: the summary, intervals, the signature, per-class accuracy, the pairs of classes that
    are confused most, and what was missing and why. ``groups``: what ``groups.of`` is asked for."""
    _, labels, found = outcomes(score_set, missing)
    accuracy, count = _per_class(labels, found, len(score_set.classes))
    rows = np.flatnonzero(score_set.labels >= 0)
    names = score_set.classes
    videos = source_videos.of(score_set, groups)
    return {
        **summary(score_set, missing, rule, videos),
        "intervals": intervals(score_set, missing, rule, videos),
        "signature": str(score_set.signature),
        "per_class": [
            {"class": name, "n": int(num), "top1": float(share) if num else None}
            for name, num, share in zip(names, count, accuracy, strict=True)
        ],
        "confused": [
            {"class": names[label], "predicted": names[predicted], "n": num, "share": share}
            for label, predicted, num, share in confused(score_set.scores[rows], score_set.labels[rows])
        ],
        "missing_clips": score_set.missing,
    }


def describe(summary: dict[str, Any], signature: Signature, intervals: dict[str, Any] | None = None) -> str:
    """The terminal's text of a summary: numbers in percent with one standard error, how many clips, the signature."""
    classes = f"{summary['classes']} of {summary['num_classes']} classes"
    few = f"  (there are only {summary['num_classes']} classes)" if summary["num_classes"] <= 5 else ""
    lines = [
        f"top-1       {percent(summary['top1'], summary['top1_se'])}",
        f"top-5       {percent(summary['top5'], summary['top5_se'])}{few}",
        f"mean class  {percent(summary['mean_class'], summary['mean_class_se'])}"
        f"  ({summary['mean_class_rule']}: {classes})",
    ]
    if intervals and intervals["top1"]:
        names = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class"}
        ranges = (
            f"{text} {100 * intervals[key][0]:.2f} to {100 * intervals[key][1]:.2f}" for key, text in names.items()
        )
        lines.append(f"interval    95 %: {', '.join(ranges)}")
    if summary["unit"] == "video":
        lines.append(f"drawn       {summary['num_units']} source videos, whose clips are not independent")
    return "\n".join(
        [
            *lines,
            f"scored      {summary['n']} of {summary['requested']} clips{_gaps(summary)}",
            f"signature   {signature}",
        ]
    )


def percent(share: float | None, error: float | None) -> str:
    """``75.12 ± 0.31``, in percent; a dash where there is no number."""
    if share is None:
        return "-"
    return f"{100 * share:5.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def _gaps(summary: dict[str, Any]) -> str:
    text = ""
    if num_missing := summary["requested"] - summary["n"]:
        text += f"; {num_missing} missing " + ("count as wrong" if summary["missing"] == "wrong" else "are left out")
    if summary["unlabelled"]:
        text += f"; {summary['unlabelled']} without a label are in no number"
    return text


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    table, index = np.asarray(scores), np.asarray(labels)
    if table.ndim != 2 or index.shape != table.shape[:1]:
        raise DataError(f"scores {table.shape} and labels {index.shape}: give [clips, classes] and [clips]")
    if len(index) and not np.issubdtype(index.dtype, np.integer):
        raise DataError(f"labels are {index.dtype}; give class indices")
    index = index.astype(np.int64)
    if len(index) and not 0 <= index.min() <= index.max() < table.shape[1]:
        raise DataError(
            f"labels go from {index.min()} to {index.max()}, the scores have classes 0 to {table.shape[1] - 1}"
        )
    return table, index


def _per_class(
    labels: NDArray[np.int64], found: NDArray[np.int64], num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    count = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[found == 0], minlength=num_classes)
    return np.where(count > 0, right / np.maximum(count, 1), np.nan), count


def _averaged(count: NDArray[np.int64], predicted: NDArray[np.int64], rule: Rule) -> NDArray[np.bool_]:
    """bool [C]: the classes that the mean is over. Of those, a class without rows counts 0."""
    if rule not in RULES:
        raise ValueError(f"mean class accuracy by rule {rule!r}: rules are {', '.join(RULES)}")
    present = count > 0
    if rule == "mmaction2":
        present[predicted[predicted >= 0]] = True
    return present


def _draws(
    labels: NDArray[np.int64],
    found: NDArray[np.int64],
    averaged: NDArray[np.bool_],
    units: NDArray[np.int64] | None,
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Bootstrap draws of top1, top5 and mean_class. Classes that are averaged and have no clip count 0 in each draw."""
    present = len(np.unique(labels))
    one = np.zeros_like(labels)
    drawn = {}
    for key, right, strata in (("top1", found == 0, one), ("top5", found < 5, one), ("mean_class", found == 0, labels)):
        rng, gain = np.random.default_rng(seed), right.astype(np.int64)
        values = (
            resample_clips(gain, strata, rng) if units is None else resample_groups(gain, strata, units, rng)
        )  # fmt: skip
        drawn[key] = values * present / averaged.sum() if key == "mean_class" else values
    return drawn


def _share_error(share: float, num_clips: int) -> float:
    return float(np.sqrt(share * (1 - share) / num_clips)) if num_clips else float("nan")


def _mean_class_error(accuracy: NDArray[np.float64], count: NDArray[np.int64], averaged: NDArray[np.bool_]) -> float:
    """Standard error of the mean of K class accuracies: sqrt(sum of their variances) / K.

    The variance of a class's accuracy p from n clips is p(1-p)/(n-1): dividing by n would be too small by n/(n-1),
    which matters for classes of a few clips. One clip alone shows no variance, it is right or wrong. So the classes of
    one clip are taken together as if they were one class (collapsed strata: Cochran, Sampling Techniques, 1977, 5A.12),
    which errs on the large side; the only such class gets p(1-p) of the mean over classes.
    """
    num_averaged = int(averaged.sum())
    several, one = count > 1, count == 1
    if num_averaged == 0 or count.sum() < 2:
        return float("nan")
    variance = (accuracy[several] * (1 - accuracy[several]) / (count[several] - 1)).sum()
    if num_one := int(one.sum()):
        if num_one > 1:
            variance += num_one * accuracy[one].var(ddof=1)
        else:
            mean = accuracy[count > 0].mean()
            variance += mean * (1 - mean)
    return float(np.sqrt(variance) / num_averaged)


def _mean(values: NDArray[Any]) -> float:
    """The mean, where a class without rows (NaN) counts 0; NaN of nothing."""
    return float(np.nan_to_num(values.astype(np.float64)).mean()) if len(values) else float("nan")
