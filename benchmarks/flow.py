"""Our TV-L1 beside OpenCV's: how far apart the flows are, and pairs a second of every method.

    python benchmarks/flow.py VIDEO... [--side 256] [--pairs 3] [--rounds 3] [--device cpu] [--in-a-row N] [--json OUT]

Needs opencv-contrib-python-headless, in an environment of its own: it replaces opencv-python-headless. Without it there
is only what comes of frames in a row. Pairs of consecutive frames are spread over each video, their short side scaled
to ``--side``. The reference is cv2.optflow.DualTVL1OpticalFlow with its defaults on one thread. Distances are end-point
errors in pixels, where the reference is under 20 px; "moving" is where it is at least 0.25 px, "still" the rest.
"equal": share of equal
bytes after quantisation with a bound of 20 px. "itself": OpenCV against OpenCV with its first picture changed by noise
of 0.00025 grey levels, as the order of additions may change it: nobody can be expected to come nearer than that.
Speeds are pairs a second of CPU time of this process (of wall time on a GPU), all methods in turns, median and range
over the rounds. A GPU is not busy with a pair: there it also takes 64 frames in a row of each video, at 456x256, as
``datakit flow`` gives them to it, after one run that compiles (``--in-a-row N``: another number, on a processor too).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from datakit import flow, reader

try:
    import cv2
except ImportError:
    cv2 = None

BOUND_PX = 20.0
MOVING_PX = 0.25
METHODS = (("tvl1", "opencv"), ("tvl1", "opencv-cuda"), ("tvl1", "fast"), ("dis", "medium"), ("dis", "fast"),
           ("dis", "ultrafast"))  # fmt: skip
REFERENCE = "OpenCV tvl1"


def pairs_of(path: Path, side_px: int, count: int) -> list[flow.Frames]:
    with reader.open(path) as video:
        starts = [(2 * number + 1) * (video.num_frames - 1) // (2 * count) for number in range(count)]
        wanted = [video.frames([start, start + 1]) for start in starts]
        scale = side_px / min(video.height, video.width)
        size = (round(video.width * scale / 2) * 2, round(video.height * scale / 2) * 2)
    return [np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in pair]) for pair in wanted]


def reference(frames: flow.Frames) -> flow.Flow:
    one, other = flow.grey(frames)
    found: flow.Flow = cv2.optflow.DualTVL1OpticalFlow_create().calc(one, other, None)[None]
    return found


def shaken(frames: flow.Frames) -> flow.Flow:
    """The reference again, its first picture changed by less than a picture of eight bits can show."""
    one, other = flow.grey(frames).astype(np.float32) / 255
    one += np.random.default_rng(0).normal(0, 1e-6, one.shape).astype(np.float32)
    found: flow.Flow = cv2.optflow.DualTVL1OpticalFlow_create().calc(one, other, None)[None]
    return found


def distances(found: list[flow.Flow], wanted: list[flow.Flow]) -> dict[str, Any]:
    error = np.concatenate([np.linalg.norm(a - b, axis=-1).ravel() for a, b in zip(found, wanted, strict=True)])
    length = np.concatenate([np.linalg.norm(b, axis=-1).ravel() for b in wanted])
    equal = [flow.quantised(a, BOUND_PX) == flow.quantised(b, BOUND_PX) for a, b in zip(found, wanted, strict=True)]
    row: dict[str, Any] = {"equal_bytes": float(np.mean([one.mean() for one in equal]))}
    for name, chosen in (
        ("all", length < BOUND_PX),
        ("moving", (length < BOUND_PX) & (length >= MOVING_PX)),
        ("still", length < MOVING_PX),
    ):
        here = error[chosen]
        row[name] = {"share": float(chosen.mean())}
        if here.size:
            row[name] |= {
                "mean_px": float(here.mean()),
                "median_px": float(np.median(here)),
                "p95_px": float(np.percentile(here, 95)),
                "within_half_px": float((here <= 0.5).mean()),
            }
    return row


def in_a_row(path: Path, count: int) -> flow.Frames:
    """Up to ``count`` frames from the middle of a video, 456x256."""
    with reader.open(path) as video:
        start = max(0, (video.num_frames - count) // 2)
        frames = torch.from_numpy(video.frames(range(start, min(start + count, video.num_frames))))
    small = F.interpolate(frames.permute(0, 3, 1, 2).float(), (256, 456), mode="area")
    resized: flow.Frames = small.round().byte().permute(0, 2, 3, 1).numpy()
    return resized


def throughput(
    estimates: dict[str, flow.Estimate], runs: dict[str, flow.Frames], rounds: int, device: str
) -> dict[str, Any]:
    """{method: {video: pairs a second of each round}}, by the same clock as the pairs, the videos in turns."""
    clock = time.process_time if device == "cpu" else time.monotonic
    found: dict[str, Any] = {}
    for method, estimate in estimates.items():
        estimate(next(iter(runs.values())))
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, frames in runs.items():
                start = clock()
                estimate(frames)
                rates[name].append((len(frames) - 1) / (clock() - start))
        found[method] = rates
        print(f"{method}, frames in a row, pairs a second on {device}:")
        for name, values in rates.items():
            middle = statistics.median(values)
            print(f"  {name[:24]:24} {len(runs[name])} {middle:8.1f} ({min(values):.1f} to {max(values):.1f})")
    return found


def timed(
    work: Callable[[flow.Frames], flow.Flow], pairs: list[flow.Frames], device: str
) -> tuple[float, list[flow.Flow]]:
    clock = time.process_time if device == "cpu" else time.monotonic
    start = clock()
    found = [work(pair) for pair in pairs]
    return len(pairs) / (clock() - start), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3, help="of each video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--in-a-row", type=int, metavar="N", help="frames of each video at once (64 on a GPU)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    count = args.in_a_row or (64 if args.device == "cuda" else 0)
    reference_is_here = hasattr(cv2, "optflow")
    if not reference_is_here and not count:
        raise SystemExit("the reference needs: pip install opencv-contrib-python-headless; or type --in-a-row 64")
    report: dict[str, Any] = {"torch": str(torch.__version__), **(compared(args) if reference_is_here else {})}
    if count:
        if args.device == "cuda":
            report["gpu"] = torch.cuda.get_device_name()
        runs = {path.name: in_a_row(path, count) for path in args.videos}
        ours = {f"tvl1 {one}": flow.estimator("tvl1", one, args.device) for one in flow.parameter_sets("tvl1")}
        report["in_a_row"] = throughput(ours, runs, args.rounds, args.device)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def compared(args: argparse.Namespace) -> dict[str, Any]:
    """The pairs of each video by every method, against the reference."""
    cv2.setNumThreads(1)
    by_video = {path.name: pairs_of(path, args.side, args.pairs) for path in args.videos}
    pairs = [pair for some in by_video.values() for pair in some]
    methods: dict[str, flow.Estimate] = {
        f"{method} {params}": flow.estimator(method, params, args.device if method == "tvl1" else "cpu")
        for method, params in METHODS
    }
    rates: dict[str, list[float]] = {name: [] for name in (REFERENCE, *methods)}
    flows: dict[str, list[flow.Flow]] = {}
    for _ in range(args.rounds):
        for name, work in {REFERENCE: reference, **methods}.items():
            rate, flows[name] = timed(work, pairs, args.device if name.startswith("tvl1") else "cpu")
            rates[name].append(rate)
    itself = [shaken(pair) for pair in pairs]
    report: dict[str, Any] = {"opencv": cv2.__version__, "videos": {}, "methods": {}}
    print("video                       mean  median     p95  <=0.5 | moving: share, mean, p95 | still | equal | itself")
    for place, name in enumerate(by_video):
        mine = slice(place * args.pairs, (place + 1) * args.pairs)
        row = distances(flows["tvl1 opencv"][mine], flows[REFERENCE][mine])
        row["itself"] = distances(itself[mine], flows[REFERENCE][mine])["all"]
        report["videos"][name] = row
        every, moving, still = (row[part] for part in ("all", "moving", "still"))
        print(
            f"{name[:24]:24} {every['mean_px']:7.4f} {every['median_px']:7.4f} {every['p95_px']:7.4f} "
            f"{every['within_half_px']:6.4f} | {moving['share']:5.2f} {moving.get('mean_px', 0):7.4f} "
            f"{moving.get('p95_px', 0):7.4f} | {still.get('mean_px', 0):7.4f} {still.get('p95_px', 0):7.4f} "
            f"| {row['equal_bytes']:6.4f} | {row['itself']['mean_px']:7.4f} {row['itself']['p95_px']:7.4f}"
        )
    print()
    for name, values in rates.items():
        row = distances(flows[name], flows[REFERENCE])
        middle = statistics.median(values)
        ratios = [one / other for one, other in zip(values, rates[REFERENCE], strict=True)]
        report["methods"][name] = {"pairs_a_second": values, "ratio": ratios, "against_reference": row}
        ratio = statistics.median(ratios)
        print(
            f"{name:18} {middle:8.2f} pairs/s ({min(values):.2f} to {max(values):.2f}), {ratio:7.2f} x {REFERENCE}; "
            f"mean {row['all']['mean_px']:.3f} median {row['all']['median_px']:.3f} "
            f"p95 {row['all']['p95_px']:.3f} px, equal bytes {row['equal_bytes']:.3f}"
        )
    return report


if __name__ == "__main__":
    main()
