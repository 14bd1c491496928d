"""Score files that are made up, for the examples to run without videos."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evalkit import protocols
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

NUM_CLASSES = 12


def scores(
    ids: list[str],
    *,
    skill: float = 2.2,
    seed: int = 0,
    copy: int = 0,
    mode: str = "accurate",
    keep_views: bool = True,
    **signature: str,
) -> ScoreSet:
    """Scores under the SlowOnly protocol of ``mode``.

    Runs of one ``seed`` see the same clips with the same network: they differ by their views, by ``skill``, and a
    little by the ``copy`` of the files.
    """
    protocol = protocols.get("slowonly", mode)
    rng = np.random.default_rng(seed)
    labels = np.arange(len(ids)) % NUM_CLASSES
    whole = rng.normal(size=(len(ids), 1, 1, NUM_CLASSES))
    whole = whole + rng.normal(scale=0.25, size=(len(ids), 3, 10, NUM_CLASSES))
    whole += np.random.default_rng(100 + copy).normal(scale=0.2, size=(len(ids), 1, 1, NUM_CLASSES))
    whole[np.arange(len(ids)), :, :, labels] += skill
    logits = (whole if mode == "accurate" else whole[:, 2:, 4:5]).reshape(len(ids), -1, NUM_CLASSES)
    views = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    parts: dict[str, Any] = {
        "model": "slowonly_r50_8x8", "clip": "8x8", "views": protocol.views, "sampling": protocol.sampling,
        "resize": "256-cv2", "input": "rgb", "agg": protocol.aggregation, "weights": f"0000000{seed}",
    }  # fmt: skip
    return ScoreSet(
        ids=ids,
        labels=labels,
        scores=views.mean(axis=1),
        views=views.astype(np.float16) if keep_views else None,
        classes=tuple(f"class {number}" for number in range(NUM_CLASSES)),
        kind="prob",
        signature=Signature(**(parts | signature)),
        meta={"protocol": asdict(protocol)},
    )


def save(folder: Path, **score_sets: ScoreSet) -> list[Path]:
    """Write each as ``folder/NAME/scores.npz``; returns the folders."""
    for name, score_set in score_sets.items():
        score_set.save(folder / name / "scores.npz")
    return [folder / name for name in score_sets]
