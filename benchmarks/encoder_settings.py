"""Encoder settings side by side: bytes, PSNR-Y, SSIM-Y and CPU of x264 alone, and the cost of one random 8x8 clip.

    python benchmarks/encoder_settings.py VIDEO... [--rounds 5] [--frames 120] [--json OUT]

Each source is scaled once to the 256p variant's size with our scaler; every setting encodes those same pictures, in
turns (the order turns round each round), on one thread. CPU is the encoder process's user + system time less that
of reading the same raw pictures. The base is what mmaction2's resize_videos.py runs: preset medium, crf 23, a keyframe
every 250.
The random clip: 8 frames 8 apart from the middle of the file, keyframe seek against decoding the base file whole.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from datakit import catalog, encode, probe, reader

PLANE = NDArray[np.uint8]
# name -> (preset, crf, keyframe every, x264 options)
_OURS = "aq-strength=0.9:rc-lookahead=30:deadzone-inter=8:deadzone-intra=5:me=dia"
SETTINGS = {
    "medium g250 (mmaction2)": ("medium", 23, 250, ""),
    "medium g32": ("medium", 23, 32, ""),
    "veryfast g32": ("veryfast", 23, 32, ""),
    "small dead zones, g32": ("veryfast", 24, 32, _OURS),
    "the same, g60": ("veryfast", 24, 60, _OURS),
    "g60, lookahead 20": ("veryfast", 24, 60, f"{_OURS}:rc-lookahead=20"),
    "g60, subme 1": ("veryfast", 24, 60, f"{_OURS}:subme=1"),
    "g60, 8x8 partitions only, weightp 0": (
        "veryfast", 24, 60, f"{_OURS}:rc-lookahead=20:partitions=p8x8,i8x8,i4x4:weightp=0",
    ),
}  # fmt: skip


def chosen() -> tuple[str, float, int, str]:
    variant = catalog.variant("256p")
    return variant.preset, variant.crf, variant.gop_frames, ":".join(variant.x264)


def children_s(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def luma(path: Path, height: int) -> PLANE:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray()[:height].copy() for frame in container.decode(video=0)])


def psnr(a: PLANE, b: PLANE) -> float:
    """dB, mean over frames; [n, H, W] each."""
    error = ((a.astype(np.float32) - b) ** 2).mean((1, 2))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-3))).mean())


def ssim(a: PLANE, b: PLANE) -> float:
    """Structural similarity over blocks of 8x8 (Wang et al. 2004, constants 0.01 and 0.03); [n, H, W] each."""
    n, h, w = a.shape[0], a.shape[1] // 8, a.shape[2] // 8
    x, y = (
        each[:, : h * 8, : w * 8].astype(np.float32).reshape(n, h, 8, w, 8).swapaxes(2, 3).reshape(n, h * w, 64)
        for each in (a, b)
    )
    mx, my = x.mean(-1), y.mean(-1)
    covariance = (x * y).mean(-1) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        (((2 * mx * my + c1) * (2 * covariance + c2)) / ((mx**2 + my**2 + c1) * (x.var(-1) + y.var(-1) + c2))).mean()
    )


def one_clip_s(path: Path, num_frames: int) -> float:
    start = (num_frames - 64) // 2
    before = time.process_time()
    with reader.open(path, num_frames=num_frames) as video:
        video.frames(range(start, start + 64, 8))
    return time.process_time() - before


def whole_s(path: Path) -> float:
    before = time.process_time()
    with reader.open(path) as video:
        video.frames(range(video.num_frames))
    return time.process_time() - before


def measure(source: Path, rounds: int, num_frames: int, settings: dict[str, tuple[str, float, int, str]]) -> dict:
    info = probe.media_info(source)
    width, height = catalog.variant("256p").size(info.displayed_width, info.displayed_height)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in settings}
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.yuv"
        kernel = "filter=bicubic:param_a=0:param_b=0.6:chromalin=center:chromal=center"
        scale = f"zscale={width}:{height}:{kernel}:range=limited,setsar=1,format=yuv420p"
        program = [encode.ffmpeg_program(), "-v", "error", "-y"]
        to_raw = ["-frames:v", str(num_frames), "-vf", scale, "-fps_mode", "passthrough", "-f", "rawvideo", str(raw)]
        subprocess.run([*program, "-i", str(source), *to_raw], check=True)
        pictures = np.frombuffer(raw.read_bytes(), np.uint8).reshape(-1, height * 3 // 2, width)[:, :height]
        read = [*program, "-f", "rawvideo", "-s", f"{width}x{height}", "-pix_fmt", "yuv420p", "-i", str(raw)]
        for number in range(rounds):
            for name in sorted(settings, reverse=number % 2 == 1):
                preset, crf, gop, options = settings[name]
                out = Path(folder) / f"{list(settings).index(name)}.mp4"
                x264 = ":".join(filter(None, ["threads=1:cpu-independent=1", options]))
                how = ["-c:v", "libx264", "-preset", preset, "-crf", str(crf), "-g", str(gop), "-flags", "+cgop"]
                used = children_s([*read, *how, "-threads", "1", "-x264-params", x264, str(out)])
                used -= children_s([*read, "-f", "null", "-"])
                found[name].setdefault("cpu_s", []).append(used)
        base = Path(folder) / "0.mp4"
        for number, name in enumerate(settings):
            out = Path(folder) / f"{number}.mp4"
            decoded = luma(out, height)
            found[name] |= {"bytes": [out.stat().st_size], "psnr": [psnr(pictures, decoded)]}
            found[name] |= {"ssim": [ssim(pictures, decoded)]}
            if len(pictures) >= 64:
                found[name]["clip"] = [one_clip_s(out, len(pictures)) / whole_s(base) for _ in range(rounds)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=120, help="of each video at most")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = {**SETTINGS, "chosen": chosen()}
    results = {str(video): measure(video, args.rounds, args.frames, settings) for video in args.videos}
    if args.json:
        args.json.write_text(json.dumps({"settings": settings, "results": results}))
    base = next(iter(settings))
    print(f"{len(results)} videos, {args.rounds} rounds; base: {base}; quality: mean over videos (worst video)")
    print("| setting | crf, options | CPU, median (range) | bytes, median / all | PSNR-Y dB | SSIM-Y | one 8x8 clip |")
    print("|---|---|---|---|---|---|---|")
    for name, (_, crf, _, options) in settings.items():
        rows = [(one[name], one[base]) for one in results.values()]
        cpu = [a / b for row, first in rows for a, b in zip(row["cpu_s"], first["cpu_s"], strict=True)]
        sizes = [row["bytes"][0] / first["bytes"][0] for row, first in rows]
        total = sum(row["bytes"][0] for row, _ in rows) / sum(first["bytes"][0] for _, first in rows)
        quality = {
            key: [row[key][0] - first[key][0] for row, first in rows] for key in ("psnr", "ssim")
        }  # differences to the base
        clips = [ratio for row, _ in rows for ratio in row.get("clip", [])]
        print(
            f"| {name} | {crf:g} {options} | {statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}) "
            f"| {statistics.median(sizes):.3f} / {total:.3f} "
            f"| {statistics.mean(quality['psnr']):+.2f} ({min(quality['psnr']):+.2f}) "
            f"| {statistics.mean(quality['ssim']):+.4f} ({min(quality['ssim']):+.4f}) "
            f"| {statistics.median(clips) if clips else float('nan'):.2f} |"
        )


if __name__ == "__main__":
    main()
