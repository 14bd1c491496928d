"""What a clip costs: CPU seconds and bytes of its variants, and the numbers of manifests/costs.toml fitted to them.

    python benchmarks/costs.py VIDEO... [--variant 256p --variant 320p] [--rounds 3]

Every video goes through what ``prepare`` does with it - hash, probe, encode, decode what came out - once with each
variant and once with all of them. CPU is user + system time of this process and its children.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
from pathlib import Path

import numpy as np

from datakit import catalog, encode, probe


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    names = args.variant or ["256p", "320p", "340x256"]
    rows, cpu, bytes_a_pixel = [], [], []
    for video in args.videos:
        for chosen in [*([name] for name in names), names]:
            frames, source_px, sizes, num_bytes, seconds = measure(video, chosen, args.rounds)
            made_px = sum(width * height for width, height in set(sizes))
            rows.append([1.0, frames * source_px / 1e6, frames * made_px / 1e6])
            cpu.append(seconds)
            if len(chosen) == 1:
                bytes_a_pixel.append(num_bytes / (frames * made_px))
            print(f"{video.name:28} {'+'.join(chosen):22} {frames:4} frames {source_px:8} px -> {made_px:7} px "
                  f"{seconds:6.2f} s CPU {num_bytes / 1e6:6.2f} MB")  # fmt: skip
    # relative errors: a long clip must not outvote the short ones
    weights = 1 / np.array(cpu)
    fitted, *_ = np.linalg.lstsq(np.array(rows) * weights[:, None], np.array(cpu) * weights, rcond=None)
    off = np.abs(np.array(rows) @ fitted / np.array(cpu) - 1)
    print(f"clip_cpu_s = {fitted[0]:.3f}")
    print(f"source_pixel_cpu_ns = {1e3 * fitted[1]:.2f}")
    print(f"made_pixel_cpu_ns = {1e3 * fitted[2]:.2f}")
    print(f"made_pixel_bytes = {statistics.median(bytes_a_pixel):.4f}")
    print(f"the fit is off by {np.median(off):.0%} (median), {off.max():.0%} (worst)")


def measure(video: Path, names: list[str], rounds: int) -> tuple[int, int, list[tuple[int, int]], int, float]:
    """(frames, pixels a frame, sizes of the variants, bytes of all of them, CPU seconds: the median of the rounds)"""
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            before = cpu_s()
            source_sha256 = encode.sha256_file(video)
            info = probe.media_info(video)
            variants = [catalog.variant(name) for name in names]
            sizes = [one.size(info.displayed_width, info.displayed_height) for one in variants]
            orders = {
                size: (variant, size, encode.tag_for(source_sha256, variant.encode_key(size)))
                for variant, size in zip(variants, sizes, strict=True)
            }
            encoded = encode.encode(video, list(orders.values()), Path(folder))
            seconds.append(cpu_s() - before)
    pixels = round(float(info.displayed_width * info.displayed_height))
    num_bytes = sum(one.checked.bytes for one in encoded)
    return encoded[0].checked.frames, pixels, sizes, num_bytes, statistics.median(seconds)


def cpu_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
