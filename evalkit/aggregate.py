"""How the scores of a video's views become one row of scores: the rules that ``Protocol.aggregation`` names.

V views, C classes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .protocols import Protocol

TOP = 5


def views_hold(aggregation: str) -> Literal["prob", "logit"]:
    """What is kept of a view under this rule: probabilities, or logits where the softmax comes after the mean."""
    return "logit" if aggregation == "logit-mean" else "prob"


def aggregate(views: NDArray[np.floating[Any]], aggregation: str) -> NDArray[np.float32]:
    """[V, C], what ``views_hold`` says -> float32 [C]; added up in double precision, whatever the order of the views.

    Sources: mmaction2 v0.24.1 models/heads/base.py (average_clip), tsn_head.py, tsm_head.py; PySlowFast 287ec00
    slowfast/utils/meters.py:326 (sum, max); torchvision references/video_classification/train.py (sum).
    """
    wide = views.astype(np.float64)
    if aggregation in ("prob-mean", "segment-logit-mean"):
        row = wide.mean(axis=0)
    elif aggregation == "prob-sum":
        row = wide.sum(axis=0)
    elif aggregation == "prob-max":
        row = wide.max(axis=0)
    elif aggregation == "logit-mean":
        mean = wide.mean(axis=0)
        powers = np.exp(mean - mean.max())
        row = powers / powers.sum()
    else:
        raise ValueError(f"aggregation {aggregation!r}")
    scores: NDArray[np.float32] = row.astype(np.float32)
    return scores


# --- stopping when nothing can change any more -----------------------------------------------------------------------

# Softmax sums to 1 within 1e-6, and two means closer than float32 tells apart would be a tie: a decision must stand
# clear of both.
SLACK_A_VIEW = 1e-5
SLACK_OF_A_MEAN = 2e-7


def may_stop_early(protocol: Protocol) -> bool:
    """Whether a view can move a score by at most 1 and never down: so for means and sums of probabilities."""
    return protocol.aggregation in ("prob-mean", "prob-sum", "segment-logit-mean")


def views_until_decided(total: NDArray[np.float64], label: int, num_left: int) -> int:
    """How many more views are needed at least before top-1, and whether ``label`` is in the top 5, can be certain.

    ``total``: [C], the sum of the probabilities so far; ``num_left``: views not looked at so far. The answer is 0 when
    both are certain. A view hands out a probability of 1 in all, so

        top-1   the leader stays when every rival is behind by more than the views left
        in      label stays in when the five rivals that need least to pass it need more than the views left together
        out     label stays out when five classes are ahead of it by more than the views left

    ``label`` -1 (unknown) asks for top-1 only.
    """
    left = num_left * (1 + SLACK_A_VIEW) + SLACK_OF_A_MEAN * (num_left + float(total.sum()))
    if num_left == 0 or len(total) < 2:
        return 0
    second, first = np.partition(total, -2)[-2:]
    lead = float(first - second)
    if lead <= left:  # with j more views at best lead + j against num_left - j
        return min(num_left, max(1, int((num_left - lead) // 2) + 1))
    if label < 0 or len(total) <= TOP:
        return 0
    behind = np.sort(np.delete(total[label] - total, label))[:TOP]  # how far the best rivals are behind the label
    inside = float(behind.clip(min=0).sum()) > left
    outside = float(behind[TOP - 1]) < -left
    return 0 if inside or outside else 1
