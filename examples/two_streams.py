"""RGB and flow on GYM99.

    python -m examples.two_streams [RGB FLOW]

Fuses both streams 1:1, as the published 83.7 / 74.8 were, and says whether the fusion is better than its better part.
GYM99's validation elements come from 65 videos: intervals and tests draw whole videos. Writes two-streams.html.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from datakit import console
from evalkit import compare, groups, metrics, report, scores
from evalkit.fuse import fuse

from . import made


def main(arguments: list[str] | None = None) -> int:
    dirs = [Path(one) for one in (sys.argv[1:] if arguments is None else arguments)]
    with tempfile.TemporaryDirectory() as folder:
        dirs = dirs or generated(Path(folder))
        streams = [scores.load(path) for path in dirs]
        fused = fuse(streams, weights=(1, 1))
        fused.save(Path(folder) / "fused" / scores.FILE_NAME)
        report.write([*dirs, Path(folder) / "fused"], "two-streams.html", across_copies=True)
    sets = {"rgb": streams[0], "flow": streams[1], "fused 1:1": fused}
    videos = groups.of_all(sets.values())
    numbers = {name: metrics.summary(one, groups=videos) for name, one in sets.items()}
    for name, found in numbers.items():
        top1 = metrics.percent(found["top1"], found["top1_se"])
        print(f"{name:10} top-1 {top1}  mean class {metrics.percent(found['mean_class'], found['mean_class_se'])}")
    better = max(("rgb", "flow"), key=lambda name: numbers[name]["mean_class"])
    for metric in compare.METRICS:
        pair = compare.compare(
            sets[better], fused, names=(better, "fused 1:1"), metric=metric, groups=videos, across_copies=True
        )
        print(pair.verdict)
    print(f"drawn: {numbers['rgb']['num_units']} source videos\nwritten: two-streams.html")
    return 0


def generated(folder: Path) -> list[Path]:
    """Two streams that err on different elements of 65 videos."""
    ids = [
        f"video{video:02d}_____E_{event:06d}_{event + 40:06d}_A_{element:04d}_{element + 2:04d}"
        for video in range(65)
        for event in (100, 300)
        for element in range(0, 30, 3)
    ]
    rgb = made.scores(ids, skill=2.0, seed=1, set="gym99-val", media="256p-0000000001")
    flow = made.scores(ids, skill=2.1, seed=2, set="gym99-val", media="256p-flow-0000000002", input="flow")
    return made.save(folder, rgb=rgb, flow=flow)


if __name__ == "__main__":
    console.run(lambda _: main())
