"""Late fusion: a weighted sum of the scores of several streams, joined by clip id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datakit.errors import NotComparable, UsageError

from .scores import ScoreSet, some
from .signature import Signature

On = Literal["prob", "logit"]


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
    if len(parts) < 2:
        raise UsageError("fusion needs two score files or more: python -m evalkit fuse a/scores.npz b/scores.npz")
    if len(weights) != len(parts):
        example = ":".join("1" * len(parts))
        raise UsageError(f"{len(parts)} score files and {len(weights)} weights; type --weights {example}")
    if not np.isfinite(weights).all() or not any(weights):
        raise UsageError(f"weights {weights}: finite numbers, not all of them 0; type --weights 1:1")
    _check_kinds(parts, on)
    first = parts[0]
    aligned = [first, *(_aligned(part, first.classes, place) for place, part in enumerate(parts[1:], start=2))]
    _check_clips(aligned)
    _check_labels(aligned)

    in_all = set(first.ids).intersection(*(part.ids for part in aligned[1:]))
    ids = [clip_id for clip_id in first.ids if clip_id in in_all]
    total = np.zeros((len(ids), len(first.classes)))
    for part, weight in zip(aligned, weights, strict=True):
        row = {clip_id: index for index, clip_id in enumerate(part.ids)}
        scores = part.scores[[row[clip_id] for clip_id in ids]].astype(np.float64)
        total += weight * (softmax(scores) if on == "prob" and part.kind == "logit" else scores)
    labels = dict(zip(first.ids, first.labels.tolist(), strict=True))
    return ScoreSet(
        ids=ids,
        labels=np.array([labels[clip_id] for clip_id in ids], dtype=np.int64),
        scores=total,
        classes=first.classes,
        kind=on,
        signature=_signature([part.signature for part in aligned], weights, on),
        missing=_missing(aligned),
        meta={
            "fused": [
                {"weight": weight, "signature": str(part.signature)}
                for part, weight in zip(parts, weights, strict=True)
            ]
        },
    )


def softmax(scores: NDArray[Any]) -> NDArray[Any]:
    """Softmax along the last axis, without overflow."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: NDArray[Any] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


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
