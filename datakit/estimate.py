"""What a long run will take, said before it starts: size, disk, hours; and a question when a person is there.

The prices are measured (``benchmarks/costs.py``, ``manifests/costs.toml``); the amounts come from a few of the sources
themselves. Processors differ by a factor of two: an estimate is not a promise.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import manifests

from . import console, disk, probe
from .catalog import Variant
from .errors import DataError, ItemError, UsageError

LONG_S, LARGE_BYTES = 3600.0, 5 << 30  # what takes more is announced and asked about
NUM_LOOKED_AT = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source and what is to be made of it: ``seconds`` of it, or all. ``info`` where it was looked at already."""

    path: Path
    variants: tuple[Variant, ...]
    seconds: float | None = None
    info: probe.MediaInfo | None = None
    folder_fps: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """CPU seconds and bytes of the files to be made."""

    num_clips: int
    cpu_s: float
    num_bytes: float


def of_clip(
    pixels: float, frames: float, variants: Sequence[Variant], sizes: Sequence[tuple[int, int]]
) -> tuple[float, float]:
    """(CPU seconds, bytes) for one source of so many displayed pixels and frames, all variants from one decode.

    Variants that come out equal are encoded once and stored once, where links work.
    """
    prices = manifests.read("costs")
    cpu_s = prices["clip_cpu_s"] + prices["source_pixel_cpu_ns"] * 1e-9 * pixels * frames
    num_bytes = 0.0
    different = {one.encode_key(size): (one, size) for one, size in zip(variants, sizes, strict=True)}
    for variant, (width, height) in different.values():
        price = prices[variant.container]
        cpu_s += price["made_pixel_cpu_ns"] * 1e-9 * width * height * frames
        num_bytes += price["made_pixel_bytes"] * width * height * frames
    return cpu_s, num_bytes


def of_encoding(sources: Sequence[Source]) -> Effort | None:
    """The effort for all of ``sources``, judged by some of them, evenly spread; ``None`` when none can be read."""
    looked_at = sources[:: max(1, len(sources) // NUM_LOOKED_AT)][:NUM_LOOKED_AT]
    efforts = []
    for source in looked_at:
        try:
            info = source.info or probe.media_info(source.path, source.folder_fps)
        except (ItemError, OSError):
            continue
        frames = info.expected_frames
        if source.seconds is not None and info.fps:
            frames = round(min(source.seconds, info.duration_s) * info.fps)
        pixels = float(info.displayed_width * info.displayed_height)
        sizes = [one.size(info.displayed_width, info.displayed_height) for one in source.variants]
        efforts.append(of_clip(pixels, frames, source.variants, sizes))
    if not efforts:
        return None
    return Effort(
        num_clips=len(sources),
        cpu_s=len(sources) * statistics.fmean(cpu_s for cpu_s, _ in efforts),
        num_bytes=len(sources) * statistics.fmean(num_bytes for _, num_bytes in efforts),
    )


def before_encoding(name: str, sources: Sequence[Source], folder: Path, num_at_once: int, *, yes: bool) -> None:
    """Say what making the variants of ``sources`` below ``folder`` takes, when it is much.

    Raises ``DataError`` when the disk is too small, ``UsageError`` when a person says no.
    """
    effort = of_encoding(sources)
    if effort is None:
        return
    seconds = effort.cpu_s / num_at_once
    names = dict.fromkeys(variant.name for source in sources for variant in source.variants)
    what = (
        f"{name}: {effort.num_clips} clips into {', '.join(names)}: about {console.duration(seconds)} "
        f"with {num_at_once} at once"
    )
    ask_before(what, seconds, effort.num_bytes, folder, yes=yes, instead="--limit N makes a few")


def ask_before(what: str, seconds: float, num_bytes: float, folder: Path, *, yes: bool, instead: str) -> None:
    """Say what comes when it is long or large; stop when the disk is too small for it; ask when a person is there.

    ``what`` says it in words, ``instead`` what else could be typed. With ``yes`` nothing is asked, and a disk that
    seems too small is only mentioned.
    """
    free = disk.free_bytes(folder)
    too_small = num_bytes > free
    if not too_small and seconds < LONG_S and num_bytes < LARGE_BYTES:
        return
    print(f"{what}; {gigabytes(num_bytes)} of disk, {gigabytes(free)} are free in {folder}", file=sys.stderr)
    if yes:
        return
    if too_small:
        raise DataError(
            f"the disk seems too small for that: make room, or type --data-root with a larger one; {instead}, "
            f"--yes goes on all the same"
        )
    if sys.stdin.isatty() and sys.stderr.isatty():
        print("go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError(f"nothing was begun; {instead}, --yes does not ask")


def gigabytes(num_bytes: float) -> str:
    """``12 GB``, ``0.3 GB``, ``7 MB``"""
    if num_bytes < 1e8:
        return f"{num_bytes / 1e6:.0f} MB"
    return f"{num_bytes / 1e9:.{0 if num_bytes >= 1e10 else 1}f} GB"
