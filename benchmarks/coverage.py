"""Do 95 % intervals hold the truth in 95 of 100 cases, and does the paired test cry wolf in 5 of 100?

    python -m benchmarks.coverage [--runs 400] [--seed 0]

Simulated score sets whose true accuracy is known: clips that are independent, and clips cut from 65 videos whose clips
rise and fall together (intra-video correlation 0.02 and 0.2; accuracy of a video ~ Beta). The second side of a pair
copies the first on most clips; it is 2 points better where the interval of the difference is judged, and equally good
where the test is.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evalkit import compare, metrics
from evalkit.scores import ScoreSet
from evalkit.signature import Signature

NUM_CLIPS, NUM_CLASSES, NUM_VIDEOS = 1950, 30, 65
ACCURACY, LEAD, COPIED = 0.70, 0.02, 0.6


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    print(f"{args.runs} runs of {NUM_CLIPS} clips, {NUM_CLASSES} classes; the error of a share of 95 % is "
          f"{100 * (0.95 * 0.05 / args.runs) ** 0.5:.1f} points")  # fmt: skip
    print(f"{'clips':34} {'drawn':7} {'top-1':>6} {'mean class':>10} {'difference':>10} {'false alarms':>12}")
    for correlation in (None, 0.02, 0.2):
        start = time.perf_counter()
        held = simulate(args.runs, correlation, np.random.default_rng(args.seed))
        name = "independent" if correlation is None else f"of {NUM_VIDEOS} videos, correlation {correlation}"
        for drawn, counts in held.items():
            shares = [100 * counts[key] / args.runs for key in ("top1", "mean_class", "difference", "alarm")]
            print(f"{name:34} {drawn:7} {shares[0]:6.1f} {shares[1]:10.1f} {shares[2]:10.1f} {shares[3]:12.1f}")
        print(f"  ({time.perf_counter() - start:.0f} s)")


def simulate(num_runs: int, correlation: float | None, rng: np.random.Generator) -> dict[str, dict[str, int]]:
    """How often each interval held the truth, and how often the test found a difference where there is none."""
    held: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    videos = {f"clip {number}": str(number % NUM_VIDEOS) for number in range(NUM_CLIPS)}
    for _ in range(num_runs):
        labels = rng.integers(0, NUM_CLASSES, NUM_CLIPS)
        first, better, equal = sides(labels, correlation, rng)
        for drawn, groups in (("clips", None), ("videos", videos)):
            if groups is not None and correlation is None:
                continue
            bounds = metrics.intervals(first, groups=groups)
            found = compare.compare(first, better, groups=groups)
            alarm = compare.compare(first, equal, groups=groups)
            counts = held[drawn]
            for key in ("top1", "mean_class"):
                counts[key] += bounds[key][0] <= ACCURACY <= bounds[key][1]
            counts["difference"] += found.low <= LEAD <= found.high
            counts["alarm"] += alarm.differs
    return held


def sides(
    labels: NDArray[np.int64], correlation: float | None, rng: np.random.Generator
) -> tuple[ScoreSet, ScoreSet, ScoreSet]:
    """A score set, one that is ``LEAD`` better and one that is as good; both copy it on ``COPIED`` of the clips.

    On the other clips they are right as often as brings their accuracy there.
    """
    first = rng.random(NUM_CLIPS) < chance(ACCURACY, correlation, rng)
    made = [score_set(first, labels)]
    for lead in (LEAD, 0.0):
        own = rng.random(NUM_CLIPS) < chance(ACCURACY + lead / (1 - COPIED), correlation, rng)
        made.append(score_set(np.where(rng.random(NUM_CLIPS) < COPIED, first, own), labels))
    return made[0], made[1], made[2]


def chance(accuracy: float, correlation: float | None, rng: np.random.Generator) -> NDArray[np.float64]:
    """Each clip's chance to be right: that of its video."""
    if correlation is None:
        return np.full(NUM_CLIPS, accuracy)
    size = (1 - correlation) / correlation
    of_video = rng.beta(accuracy * size, (1 - accuracy) * size, NUM_VIDEOS)
    return of_video[np.arange(NUM_CLIPS) % NUM_VIDEOS]


def score_set(right: NDArray[np.bool_], labels: NDArray[np.int64]) -> ScoreSet:
    predicted = np.where(right, labels, (labels + 1) % NUM_CLASSES)
    return ScoreSet(
        ids=[f"clip {number}" for number in range(len(labels))],
        labels=labels,
        scores=np.eye(NUM_CLASSES, dtype=np.float32)[predicted],
        classes=tuple(f"class {number}" for number in range(NUM_CLASSES)),
        kind="prob",
        signature=Signature(set="simulated"),
    )


if __name__ == "__main__":
    main()
