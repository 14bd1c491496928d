"""Late fusion: a weighted sum of the scores of several streams, joined by clip id."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datakit.errors import DataError, NotComparable, UsageError

from . import groups as source_videos
from . import metrics
from .scores import ScoreSet, some
from .signature import Signature

On = Literal["prob", "logit"]

NUM_FOLDS = 10
ROWS_AT_ONCE = 256
STEPS = {2: 20, 3: 10, 4: 10, 5: 5, 6: 4}  # streams -> steps from 0 to 1: 21, 66, 286, 126 and 126 mixtures


def fuse(parts: Sequence[ScoreSet], weights: Sequence[float] | None = None, on: On = "prob") -> ScoreSet:
    """sum_i weights[i] * scores_i in double precision, as mmaction2's tools/analysis/report_accuracy.py adds them.

    Rows are joined by id and columns by class name, whatever their order; the result has the order of the first part.
    on "prob"   adds probabilities; parts that hold logits go through softmax first
       "logit"  adds logits; parts that hold probabilities are refused
    A clip that one part could not score is missing in the result, with the reason. The weights are not divided by their
    sum. ``meta["fused"]`` holds each part's weight and signature, ``agg`` of the signature the weights.

    Raises ``UsageError`` for a wrong number of parts or weights, ``NotComparable`` when the parts were not asked for
    the same clips with the same labels and classes, hold different kinds of scores, or hold partial ones.
    """
    weights = tuple(weights) if weights is not None else (1.0,) * len(parts)
    if len(weights) != len(parts):
        example = ":".join("1" * len(parts))
        raise UsageError(f"{len(parts)} score files and {len(weights)} weights; type --weights {example}")
    if not np.isfinite(weights).all() or not any(weights):
        raise UsageError(f"weights {weights}: finite numbers, not all of them 0; type --weights 1:1")
    aligned, ids, streams = _joined(parts, on)
    first = aligned[0]
    total = _sum(streams, weights)
    labels = dict(zip(first.ids, first.labels.tolist(), strict=True))
    signature, files = _signature([part.signature for part in aligned], weights, on), _files(aligned, ids)
    return ScoreSet(
        ids=ids,
        labels=np.array([labels[clip_id] for clip_id in ids], dtype=np.int64),
        scores=total,
        classes=first.classes,
        kind=on,
        signature=signature if files is None else replace(signature, media=first.signature.media),
        files=files,
        missing=_missing(aligned),
        meta={
            "fused": [
                {"weight": weight, "signature": str(part.signature)}
                for part, weight in zip(parts, weights, strict=True)
            ]
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Weights chosen by top-1 among ``num_mixtures``, and what may be said of them.

    optimistic       top-1 of these weights on the very clips that chose them: too high, the more the more streams
    cross_validated  top-1 where each fold is counted with weights chosen on the others (``chosen_a_fold``): honest;
                     None where the weights were chosen on another split, and so every number of the fusion is honest
    equal            top-1 of equal weights, which chose nothing
    unit             what was kept together in a fold: "clip", or "video" where clips of one video are alike
    """

    weights: tuple[float, ...]
    num_mixtures: int
    optimistic: float
    equal: float
    cross_validated: float | None = None
    chosen_a_fold: tuple[tuple[float, ...], ...] = ()
    unit: str = "clip"
    chosen_on: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def search(parts: Sequence[ScoreSet], on: On = "prob", groups: Mapping[str, str] | None = None) -> Search:
    """Choose weights by cross-validation over ``NUM_FOLDS`` folds of clips, or of videos with ``groups``.

    The weights handed back are those of all clips together. A clip that is missing and counts as wrong is wrong under
    all weights. Ties go to the weights nearest to equal ones. Raises what ``fuse`` does, ``DataError`` without labels.
    """
    mixtures, right, ids, counted = _judged(parts, on)
    units = source_videos.units(ids, groups)
    unit_of_row = np.argsort(np.argsort(np.array(ids))) if units is None else units  # whatever the order of the rows
    num_units = int(unit_of_row.max()) + 1
    num_folds = min(NUM_FOLDS, num_units)
    if num_folds < 2:
        raise DataError(f"--search needs two {'videos' if groups else 'clips'} or more, there is {num_units}")
    fold = (np.random.default_rng(0).permutation(num_units) % num_folds)[unit_of_row]
    chosen = [_best(mixtures, right[:, fold != number]) for number in range(num_folds)]
    honest = sum(int(right[best, fold == number].sum()) for number, best in enumerate(chosen))
    best = _best(mixtures, right)
    return Search(
        weights=mixtures[best],
        num_mixtures=len(mixtures),
        optimistic=float(right[best].sum()) / counted,
        equal=_equal(parts, on),
        cross_validated=honest / counted,
        chosen_a_fold=tuple(mixtures[number] for number in chosen),
        unit="clip" if groups is None else "video",
    )


def search_on(others: Sequence[ScoreSet], parts: Sequence[ScoreSet], on: On = "prob") -> Search:
    """Choose weights for ``parts`` on ``others``, the same streams on another split.

    Raises ``UsageError`` where the two share clips: such weights would have seen what is counted.
    """
    if len(others) != len(parts):
        raise UsageError(
            f"--search with {len(others)} score files for {len(parts)} streams; type one for each, in order"
        )
    seen = {clip_id for other in others for clip_id in other.ids}
    if both := sorted(seen.intersection(clip_id for part in parts for clip_id in part.ids)):
        raise UsageError(
            f"--search: {len(both)} clips are among those that are counted ({some(both)}); type the scores of another "
            "split, or --search alone for cross-validation"
        )
    mixtures, right, _, counted = _judged(others, on)
    best = _best(mixtures, right)
    return Search(
        weights=mixtures[best],
        num_mixtures=len(mixtures),
        optimistic=float(right[best].sum()) / counted,
        equal=_equal(others, on),
        chosen_on=others[0].signature.set or f"list {others[0].signature.list}",
    )


def with_search(fused: ScoreSet, found: Search) -> ScoreSet:
    """Say of a fusion how its weights came about, in ``meta`` and, where its numbers are optimistic, in ``agg``."""
    signature = fused.signature
    if not found.chosen_on:
        signature = replace(signature, agg=f"{signature.agg},weights-chosen-on-these-clips")
    return replace(fused, signature=signature, meta={**fused.meta, "search": found.to_dict()})


def mixtures_of(num_parts: int) -> list[tuple[float, ...]]:
    """Weights that add up to 1, in equal steps: twentieths of two streams, tenths of three, ...; 0 leaves one out."""
    steps = STEPS.get(num_parts)
    if steps is None:
        raise UsageError(f"--search knows {min(STEPS)} to {max(STEPS)} streams, not {num_parts}; type --weights")
    shares = itertools.product(range(steps + 1), repeat=num_parts - 1)
    return [tuple(share / steps for share in (*part, steps - sum(part))) for part in shares if sum(part) <= steps]


def _judged(parts: Sequence[ScoreSet], on: On) -> tuple[list[tuple[float, ...]], NDArray[np.bool_], list[str], int]:
    """(mixtures, bool [mixtures, labelled clips]: is it right, their ids, how many clips count)."""
    aligned, ids, streams = _joined(parts, on)
    label_of = dict(zip(aligned[0].ids, aligned[0].labels.tolist(), strict=True))
    labels = np.array([label_of[clip_id] for clip_id in ids], dtype=np.int64)
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise DataError("--search chooses weights by top-1, and no clip has a label")
    mixtures = mixtures_of(len(parts))
    right = np.empty((len(mixtures), len(rows)), dtype=np.bool_)
    for start in range(0, len(rows), ROWS_AT_ONCE):  # few enough to stay near the processor
        some_rows = rows[start : start + ROWS_AT_ONCE]
        chunk = [scores[some_rows] for scores in streams]
        for number, weights in enumerate(mixtures):
            found = metrics.predictions(_sum(chunk, weights)) == labels[some_rows]
            right[number, start : start + ROWS_AT_ONCE] = found
    fused = fuse(parts, on=on)
    counted = len(metrics.outcomes(fused, metrics.rules(fused)[0])[0])
    return mixtures, right, [ids[row] for row in rows], counted


def _sum(streams: Sequence[NDArray[np.float64]], weights: Sequence[float]) -> NDArray[np.float64]:
    total = np.zeros_like(streams[0])
    for scores, weight in zip(streams, weights, strict=True):
        total += weight * scores
    return total


def _best(mixtures: Sequence[tuple[float, ...]], right: NDArray[np.bool_]) -> int:
    hits = right.sum(axis=1)
    uneven = [sum((weight - 1 / len(weights)) ** 2 for weight in weights) for weights in mixtures]
    return min(range(len(mixtures)), key=lambda number: (-hits[number], round(uneven[number], 9), number))


def _equal(parts: Sequence[ScoreSet], on: On) -> float:
    fused = fuse(parts, on=on)
    return float(metrics.summary(fused, metrics.rules(fused)[0])["top1"])


def softmax(scores: NDArray[Any]) -> NDArray[Any]:
    """Softmax along the last axis, without overflow."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: NDArray[Any] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _joined(parts: Sequence[ScoreSet], on: On) -> tuple[list[ScoreSet], list[str], list[NDArray[np.float64]]]:
    """(parts with the first one's columns, ids of the clips that all scored, float64 [clips, C] of each part)."""
    if len(parts) < 2:
        raise UsageError("fusion needs two score files or more: python -m evalkit fuse a/scores.npz b/scores.npz")
    _check_kinds(parts, on)
    first = parts[0]
    aligned = [first, *(_aligned(part, first.classes, place) for place, part in enumerate(parts[1:], start=2))]
    _check_clips(aligned)
    _check_labels(aligned)
    in_all = set(first.ids).intersection(*(part.ids for part in aligned[1:]))
    ids = [clip_id for clip_id in first.ids if clip_id in in_all]
    streams = []
    for part in aligned:
        row = {clip_id: index for index, clip_id in enumerate(part.ids)}
        scores = part.scores[[row[clip_id] for clip_id in ids]].astype(np.float64)
        streams.append(softmax(scores) if on == "prob" and part.kind == "logit" else scores)
    return aligned, ids, streams


def _check_kinds(parts: Sequence[ScoreSet], on: On) -> None:
    if on not in ("prob", "logit"):
        raise UsageError(f"--on {on}: it is prob or logit; type --on prob")
    for place, part in enumerate(parts, start=1):
        if part.meta.get("partial"):
            raise NotComparable(
                f"part {place} ({_name(part)}) holds partial scores: its run stopped where the decision was certain. "
                "Score it again without --stop-when-decided"
            )
    kinds = [part.kind for part in parts]
    if len(set(kinds)) > 1:
        raise NotComparable(
            f"the parts hold {' and '.join(kinds)} scores: a sum of logits with probabilities means nothing; "
            "score them again with the same aggregation"
        )
    if on == "logit" and kinds[0] == "prob":
        raise NotComparable("the parts hold probabilities, and logits cannot be made from them; leave out --on logit")


def _aligned(part: ScoreSet, classes: tuple[str, ...], place: int) -> ScoreSet:
    try:
        return part.in_class_order(classes)
    except NotComparable as error:
        raise NotComparable(f"part {place} ({_name(part)}) and part 1 cannot be fused: {error}") from None


def _check_clips(parts: Sequence[ScoreSet]) -> None:
    """Every part must have been asked for the same clips; one that failed somewhere is missing, not different."""
    asked = [set(part.ids) | {str(entry["id"]) for entry in part.missing} for part in parts]
    for place, (part, clips) in enumerate(zip(parts[1:], asked[1:], strict=True), start=2):
        only_first, only_here = asked[0] - clips, clips - asked[0]
        if only_first or only_here:
            shared = len(asked[0] & clips)
            raise NotComparable(
                f"part 1 ({_name(parts[0])}) and part {place} ({_name(part)}) are of different clips: "
                f"{shared} are in both"
                + (f"; {len(only_first)} only in part 1: {some(only_first)}" if only_first else "")
                + (f"; {len(only_here)} only in part {place}: {some(only_here)}" if only_here else "")
                + ". Score both on the same list"
            )


def _check_labels(parts: Sequence[ScoreSet]) -> None:
    first = dict(parts[0].pairs())
    for place, part in enumerate(parts[1:], start=2):
        other = dict(part.pairs())
        differing = [clip_id for clip_id in first if clip_id in other and first[clip_id] != other[clip_id]]
        if differing:
            example = differing[0]
            raise NotComparable(
                f"part 1 and part {place} ({_name(part)}) disagree on the label of {len(differing)} clips: "
                f"{some(differing)}; "
                f"{example!r} is {first[example] or 'without label'!r} in part 1 and "
                f"{other[example] or 'without label'!r} in part {place}"
            )


def _missing(parts: Sequence[ScoreSet]) -> list[dict[str, str | None]]:
    """What any part could not score: its label from wherever it is known, and which parts failed for which reason."""
    reasons: dict[str, list[str]] = {}
    labels: dict[str, str | None] = {}
    for place, part in enumerate(parts, start=1):
        for entry in part.missing:
            clip_id = str(entry["id"])
            reasons.setdefault(clip_id, []).append(f"part {place}: {entry['reason']}")
            labels[clip_id] = labels.get(clip_id) or entry["label"]
    for part in parts:
        for clip_id, name in part.pairs():
            if clip_id in labels:
                labels[clip_id] = labels[clip_id] or name or None
    return [{"id": clip_id, "label": labels[clip_id], "reason": "; ".join(reasons[clip_id])} for clip_id in reasons]


def _files(parts: Sequence[ScoreSet], ids: Sequence[str]) -> list[str] | None:
    """The hashes of the files, where all parts looked at the same ones."""
    first: list[str] | None = None
    for part in parts:
        if part.files is None:
            return None
        file = dict(zip(part.ids, part.files, strict=True))
        files = [file[clip_id] for clip_id in ids]
        if first is not None and files != first:
            return None
        first = files
    return first


def _signature(signatures: Sequence[Signature], weights: Sequence[float], on: On) -> Signature:
    """Where the parts agree their value, where they differ the values joined by +; the weights go into ``agg``."""
    values: dict[str, Any] = {}
    for field in fields(Signature):
        values[field.name] = "+".join(dict.fromkeys(str(getattr(signature, field.name)) for signature in signatures))
    ratio = ":".join(f"{weight:g}" for weight in weights)
    values |= {"n": 0, "list": "", "labels": signatures[0].labels, "agg": f"{values['agg']},fuse-{on}({ratio})"}
    return Signature(**values)


def _name(part: ScoreSet) -> str:
    return part.signature.model or part.signature.input or "unnamed"
