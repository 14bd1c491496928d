"""CPU of reading the 30 views of an accurate test (10 clips x 3 crops of 256): ours, the plain way, the limit.

    python benchmarks/evaluate.py VIDEO [--rounds 7] [--json OUT]

VIDEO is re-encoded into two files of 300 frames as copies of Kinetics have them: 256p with a keyframe every 250 frames
and 320p with one every 32. Everything runs on one thread of this process, in turns; CPU is user + system.

    limit    every frame decoded by PyAV, none converted: what no reader of whole files can go below
    frames   ours up to what a GPU is sent: the frames that are needed, uint8 [n, H, W, C]
    views    ours up to uint8 views [30, C, T, 256, 256], resized and cropped on the CPU
    plain    every frame decoded and converted, the needed ones resized by cv2, the views cut with numpy

Prints the median and the range over the rounds of views / plain, views / limit and frames / limit, and of our resize
against cv2's. The views of both sides are compared to the bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from datakit import reader
from evalkit import decode, infer, protocols, resize

NUM_FRAMES = 300
FILES = {"256p keyframe/250": (456, 256, 250), "320p keyframe/32": (568, 320, 32)}
SHAPES = {"4x16": (4, 16), "8x8": (8, 8), "32x2": (32, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    clip_len: int
    frame_interval: int
    frame_offsets: tuple[int, ...] = (0,)
    num_segments: int | None = None
    input: str = "rgb"


def encode(source: Path, target: Path, width: int, height: int, gop: int) -> None:
    """300 frames of ``source`` there and back, x264 medium CRF 23."""
    with av.open(str(source)) as container:
        frames = [
            frame.reformat(width=width, height=height, format="yuv420p", interpolation="BICUBIC").to_ndarray()
            for frame, _ in zip(container.decode(video=0), range(NUM_FRAMES), strict=False)
        ]
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "23", "g": str(gop), "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(NUM_FRAMES):
            picture = frames[order[number % len(order)]]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))


def decode_only(path: Path) -> None:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for _ in container.decode(video=0):
            pass


def read_frames(path: Path, spec: Spec) -> tuple[np.ndarray, np.ndarray, decode.ViewPlan]:
    protocol = protocols.get("slowonly", "accurate")
    with reader.open(path, num_frames=NUM_FRAMES, pixels="stored") as video:
        plan = decode.plan(NUM_FRAMES, video.fps, video.height, video.width, spec, protocol)
        indices, frames = video.frames_for(lambda _: plan.frames)
    return indices, frames, plan


def read_views(path: Path, spec: Spec) -> np.ndarray:
    indices, frames, plan = read_frames(path, spec)
    return infer.Views(torch.from_numpy(frames), indices, plan).cut(range(plan.num_views)).numpy()


def plain(path: Path, spec: Spec) -> np.ndarray:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    plan = decode.plan(len(frames), 30.0, *frames[0].shape[:2], spec, protocols.get("slowonly", "accurate"))
    size = (plan.width, plan.height)
    resized = {index: cv2.resize(frames[index], size) for index in np.unique(plan.frames).tolist()}
    clips = [
        np.stack([resized[index][top : top + height, left : left + width] for index in row])
        for top, left, height, width in plan.boxes
        for row in plan.frames.tolist()
    ]
    return np.ascontiguousarray(np.stack(clips).transpose(0, 4, 1, 2, 3))


def cpu_s(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(rounds: list[dict[str, float]], ours: str, theirs: str) -> dict[str, float]:
    values = [one[ours] / one[theirs] for one in rounds]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def line(name: str, ratio: dict[str, float]) -> str:
    return f"{name:36} {ratio['median']:5.2f}  ({ratio['min']:.2f} to {ratio['max']:.2f})"


def measure(path: Path, spec: Spec, num_rounds: int) -> dict[str, dict[str, float]]:
    if not np.array_equal(read_views(path, spec), plain(path, spec)):
        raise SystemExit(f"{path.name}: the views differ")
    rounds = [
        {
            "limit": cpu_s(lambda: decode_only(path)),
            "frames": cpu_s(lambda: read_frames(path, spec)),
            "views": cpu_s(lambda: read_views(path, spec)),
            "plain": cpu_s(lambda: plain(path, spec)),
        }
        for _ in range(num_rounds)
    ]
    pairs = [("views", "plain"), ("views", "limit"), ("frames", "limit"), ("plain", "limit")]
    return {f"{ours} / {theirs}": ratios(rounds, ours, theirs) for ours, theirs in pairs}


def measure_resize(num_rounds: int) -> dict[str, float]:
    """Our resize against cv2's and the copy to planar that both end in: 568x320 to 454x256, 40 frames."""
    frames = np.random.default_rng(0).integers(0, 256, (40, 320, 568, 3), dtype=np.uint8)

    def theirs() -> np.ndarray:
        return np.ascontiguousarray(np.stack([cv2.resize(frame, (454, 256)) for frame in frames]).transpose(0, 3, 1, 2))

    def ours() -> np.ndarray:
        return resize.linear(torch.from_numpy(frames), 256, 454).numpy()

    if not np.array_equal(ours(), theirs()):
        raise SystemExit("the resized frames differ")
    return ratios([{"ours": cpu_s(ours), "cv2": cpu_s(theirs)} for _ in range(num_rounds)], "ours", "cv2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, help="natural content, a few seconds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (file, (width, height, gop)) in enumerate(FILES.items()):
            path = Path(folder, f"{number}.mp4")
            encode(args.video, path, width, height, gop)
            for shape, (clip_len, frame_interval) in SHAPES.items():
                spec = Spec(clip_len=clip_len, frame_interval=frame_interval)
                results[f"{file}, {shape}"] = measure(path, spec, args.rounds)
    for cell, found in results.items():
        print(cell)
        for name, ratio in found.items():
            print("  " + line(name, ratio))
    results["resize"] = measure_resize(args.rounds)
    print(line("resize, ours / cv2", results["resize"]))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
