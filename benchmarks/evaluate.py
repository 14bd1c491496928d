"""CPU of reading the 30 views of an accurate test (10 clips x 3 crops of 256): ours, the plain way, the limit.

    python benchmarks/evaluate.py VIDEO [--rounds 7] [--memory] [--peers PYTHON] [--json OUT]

VIDEO is re-encoded into two files of 300 frames as copies of Kinetics have them: 256p with a keyframe every 250 frames
and 320p with one every 32. Everything runs on one thread of this process, in turns; CPU is user + system.

    limit    every frame decoded by PyAV, none converted: what no reader of whole files can go below
    convert  every frame decoded, the needed ones converted by swscale and dropped
    planes   ours up to what a GPU is sent: the needed frames before conversion, which the GPU does
    frames   ours up to what a CPU network is given: the needed frames, uint8 [n, H, W, C]
    held     ours up to what the engine holds: those frames resized, planar, and the views as indices into them
    views    ours up to uint8 views [30, C, T, 256, 256] in one piece, resized and cropped on the CPU
    plain    every frame decoded and converted, the needed ones resized by cv2, the views cut with numpy
    decord   mmaction2's own transforms with its default decoder: views like ours, in another environment (--peers)
    pyav     the same with its PyAV

    clip     as training reads: one clip of 8 frames 8 apart from a place drawn at random (mean of 12), against limit

Prints the median and the range over the rounds of their ratios, and of our resize against cv2's. The views of both
sides are compared to the bit. ``--memory`` then tests random networks on the 256p file, each in a process of its own:
peak of the resident memory above what the process held before the first clip, on a CPU with --batch-views auto; of
mmaction2 only its reading. PYTHON is the interpreter of an environment with what mmaction2_views.py beside it asks for.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

import models
from datakit import manifest, reader
from evalkit import decode, infer, protocols, resize

ACCURATE = protocols.get("mmaction2-1x", "accurate")  # what mmaction2 of today samples
NUM_FRAMES = 300
FILES = {"256p keyframe/250": (456, 256, 250), "320p keyframe/32": (568, 320, 32)}
CLIP_FILES = {**FILES, "256p keyframe/32": (456, 256, 32)}
DECODERS = ("decord", "pyav")
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


def decode_and_convert(path: Path, spec: Spec) -> None:
    wanted = set(decode.plan(NUM_FRAMES, 30.0, 256, 456, spec, ACCURATE).frames.reshape(-1).tolist())
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        reformatter = VideoReformatter()
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                reformatter.reformat(frame, format="rgb24")


class Memory:
    """One block that is used again and again, as a worker's shared memory is."""

    def __init__(self) -> None:
        self.block = np.empty(0, np.uint8)

    def allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        if self.block.size < size:
            self.block = np.empty(size, np.uint8)
        return self.block[:size].reshape(shape)


MEMORY = Memory()


def read_frames(path: Path, spec: Spec, *, planes: bool = False) -> tuple[np.ndarray, np.ndarray, decode.ViewPlan]:
    with reader.open(path, num_frames=NUM_FRAMES, pixels="stored") as video:
        video.allocate = MEMORY.allocate
        if planes:
            video.give_planes()
        plan = decode.plan(NUM_FRAMES, video.fps, video.height, video.width, spec, ACCURATE)
        indices, frames = video.frames_for(lambda _: plan.frames)
        if planes and video.colours is None:
            raise SystemExit(f"{path.name}: no planes")
    return indices, frames, plan


def read_views(path: Path, spec: Spec) -> np.ndarray:
    indices, frames, plan = read_frames(path, spec)
    return infer.Views(torch.from_numpy(frames), indices, plan).cut(range(plan.num_views)).numpy()


def hold_views(path: Path, spec: Spec) -> None:
    indices, frames, plan = read_frames(path, spec)
    infer.Views(torch.from_numpy(frames), indices, plan)


def plain(path: Path, spec: Spec) -> np.ndarray:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    plan = decode.plan(len(frames), 30.0, *frames[0].shape[:2], spec, ACCURATE)
    size = (plan.width, plan.height)
    resized = {index: cv2.resize(frames[index], size) for index in np.unique(plan.frames).tolist()}
    clips = [
        np.stack([resized[index][top : top + height, left : left + width] for index in row])
        for top, left, height, width in plan.boxes
        for row in plan.frames.tolist()
    ]
    return np.ascontiguousarray(np.stack(clips).transpose(0, 4, 1, 2, 3))


class Peer:
    """mmaction2's transforms in an interpreter of their own."""

    def __init__(self, python: str) -> None:
        program = Path(__file__).with_name("mmaction2_views.py")
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def read(
        self, path: Path, decoder: str, spec: Spec, num_clips: int = 10, save: Path | None = None
    ) -> dict[str, float]:
        request = {"path": str(path), "decoder": decoder, "clip_len": spec.clip_len, "num_clips": num_clips,
                   "frame_interval": spec.frame_interval, "save": save and str(save)}  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"mmaction2_views.py ended; run it by hand: echo '{json.dumps(request)}'")
        found: dict[str, float] = json.loads(answer)
        return found

    def close(self) -> None:
        self.process.communicate()


def cpu_s(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(rounds: list[dict[str, float]], ours: str, theirs: str) -> dict[str, float]:
    values = [one[ours] / one[theirs] for one in rounds]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def line(name: str, ratio: dict[str, float]) -> str:
    return f"{name:36} {ratio['median']:5.2f}  ({ratio['min']:.2f} to {ratio['max']:.2f})"


def measure(path: Path, spec: Spec, num_rounds: int, peer: Peer | None) -> dict[str, dict[str, float]]:
    views = read_views(path, spec)
    if not np.array_equal(views, plain(path, spec)):
        raise SystemExit(f"{path.name}: the views differ")
    for decoder in DECODERS if peer else ():
        saved = path.with_suffix(".npy")
        peer.read(path, decoder, spec, save=saved)
        if not np.array_equal(views, np.load(saved)):
            raise SystemExit(f"{path.name}: the views differ from those of mmaction2 with {decoder}")
    del views
    rounds = [
        {
            "limit": cpu_s(lambda: decode_only(path)),
            "convert": cpu_s(lambda: decode_and_convert(path, spec)),
            "planes": cpu_s(lambda: read_frames(path, spec, planes=True)),
            "frames": cpu_s(lambda: read_frames(path, spec)),
            "held": cpu_s(lambda: hold_views(path, spec)),
            "views": cpu_s(lambda: read_views(path, spec)),
            "plain": cpu_s(lambda: plain(path, spec)),
            **{decoder: peer.read(path, decoder, spec)["cpu_s"] for decoder in (DECODERS if peer else ())},
        }
        for _ in range(num_rounds)
    ]
    pairs = [("planes", "limit"), ("frames", "limit"), ("frames", "convert"), ("held", "limit"), ("views", "limit"),
             ("views", "plain"), ("plain", "limit")]  # fmt: skip
    if peer:
        pairs += [(ours, theirs) for theirs in DECODERS for ours in ("held", "views")]
    return {f"{ours} / {theirs}": ratios(rounds, ours, theirs) for ours, theirs in pairs}


def measure_clip(path: Path, num_rounds: int) -> dict[str, float]:
    random = np.random.default_rng(0)

    def clip(start: int) -> None:
        with reader.open(path, num_frames=NUM_FRAMES, pixels="stored") as video:
            video.frames(start + 8 * np.arange(8))

    rounds = []
    for _ in range(num_rounds):
        starts = random.integers(0, NUM_FRAMES - 57, 12).tolist()
        limit = cpu_s(lambda: decode_only(path))
        rounds.append({"limit": limit, "clip": statistics.mean(cpu_s(lambda at=at: clip(at)) for at in starts)})
    return ratios(rounds, "clip", "limit")


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


# name -> network, views
MEMORY_CASES = {
    "TSN R50 25x3@256": ("tsn_r50_1x1x8", {"num_clips": 25, "aggregation": "logit-mean"}),
    "SlowOnly R50 8x8 10x3@256": ("slowonly_r50_8x8", {}),
    "SlowFast R50 4x16 10x3@256": ("slowfast_r50_4x16", {}),
}


PEER_MEMORY_CASES = {
    "TSN 25x3@256": (Spec(clip_len=1, frame_interval=1), 25),
    "SlowFast 10x3@256": (Spec(clip_len=32, frame_interval=2), 10),
}


def resident_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def peak_memory(path: Path, name: str) -> float:
    """MiB above what the process held before, for one clip."""
    network, changes = MEMORY_CASES[name]
    net = models.create(network, num_classes=400).eval()
    clip = manifest.Clip(id="clip", label=None, label_index=-1, split="val", path=path, frames=NUM_FRAMES)
    before = resident_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again; what getrusage says begins at the parent's
    outcome = next(infer.score([clip], net, replace(ACCURATE, **changes), workers=0))
    assert outcome.scores is not None, outcome.reason
    return (resident_kib("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, help="natural content, a few seconds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with mmaction2")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {}
    peer = Peer(args.peers) if args.peers else None
    with tempfile.TemporaryDirectory() as folder:
        for number, (file, (width, height, gop)) in enumerate(CLIP_FILES.items()):
            path = Path(folder, f"{number}.mp4")
            encode(args.video, path, width, height, gop)
            results[f"{file}, a clip"] = {"clip / limit": measure_clip(path, args.rounds)}
            if file not in FILES:
                continue
            for shape, (clip_len, frame_interval) in SHAPES.items():
                spec = Spec(clip_len=clip_len, frame_interval=frame_interval)
                results[f"{file}, {shape}"] = measure(path, spec, args.rounds, peer)
        for cell, found in results.items():
            print(cell)
            for name, ratio in found.items():
                print("  " + line(name, ratio))
        if args.memory:
            results["memory_mib"] = {}
            for name in MEMORY_CASES:  # a fresh process each: a peak never goes down
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    results["memory_mib"][name] = pool.submit(peak_memory, Path(folder, "0.mp4"), name).result()
                print(f"{name:36} {results['memory_mib'][name]:5.0f} MiB")
            for name, (spec, num_clips) in PEER_MEMORY_CASES.items() if peer else ():
                for decoder in DECODERS:
                    fresh = Peer(args.peers)
                    found = fresh.read(Path(folder, "0.mp4"), decoder, spec, num_clips)["peak_mib"]
                    fresh.close()
                    results["memory_mib"][f"mmaction2's reading, {decoder}, {name}"] = found
                    print(f"{f'mmaction2, {decoder}, {name}':36} {found:5.0f} MiB")
    if peer:
        peer.close()
    results["resize"] = measure_resize(args.rounds)
    print(line("resize, ours / cv2", results["resize"]))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
