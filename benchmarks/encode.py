"""CPU of preparing three variants: ours, checked by decoding, against three ffmpeg calls with mmaction2's flags.

    python benchmarks/encode.py FOLDER [--clips 60] [--rounds 5] [--parts] [--json OUT]

Both sides run in this process and its children, in turns, on the same clips; CPU is user + system of both.
What is theirs: tools/data/resize_videos.py of mmaction2 1.2, `-vf scale=-2:256 -c:v libx264 -an` (or 256:-2 for
portrait), once a variant, without its ffprobe call. What is ours: hashing the source, probing, one encode, a full
decode of every output with content hash. Prints median and range of the ratio ours / theirs over the rounds.
``--parts`` measures instead the one ffmpeg call against its parts apart: decoding once and scaling, and each encoder
fed with raw pictures, less what starting ffmpeg and reading raw pictures costs there.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
from pathlib import Path

import av

from datakit import catalog, encode, probe
from datakit.annotations import VIDEO_SUFFIXES, ClipSpec
from datakit.prepare import Job, Target, encode_source

VARIANTS = ("256p", "320p", "340x256")


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def ours(sources: list[Path], folder: Path, variants: tuple[str, ...]) -> None:
    for number, source in enumerate(sources):
        targets = tuple(
            Target(variant=catalog.variant(name), folder=folder / name, name=f"{number}.mp4") for name in variants
        )
        spec = ClipSpec(id=str(number), video=str(number), split="val", label=None)
        outcome = encode_source(Job(spec=spec, source=source, targets=targets, work=folder, allow_damaged=2.0))
        bad = [row["message"] for row in outcome.data["variants"].values() if row["status"] != "ok"]
        if bad:
            raise SystemExit(f"{source}: {bad[0]}")


def theirs(sources: list[Path], folder: Path, sizes: list[tuple[int, int]], variants: tuple[str, ...]) -> None:
    for number, (source, (width, height)) in enumerate(zip(sources, sizes, strict=True)):
        for name in variants:
            if "x" in name:
                scale = name.replace("x", ":")
            else:
                side = name.removesuffix("p")
                scale = f"-2:{side}" if width > height else f"{side}:-2"
            flags = ["-vf", f"scale={scale}", "-c:v", "libx264", "-an"]
            command = [encode.ffmpeg_program(), "-hide_banner", "-loglevel", "error", "-i", str(source), *flags]
            subprocess.run([*command, str(folder / f"{number}-{name}.mp4"), "-y"], check=True)


def parts_ratio(sources: list[Path], folder: Path) -> float:
    """CPU of the one ffmpeg call / (decode once + scale + encode, each apart)."""
    together = apart = 0.0
    quiet = ["-v", "error", "-y"]
    for source in sources:
        info = probe.media_info(source)
        variants = [catalog.variant(name) for name in VARIANTS]
        jobs = [(one, one.size(info.displayed_width, info.displayed_height), "") for one in variants]
        command = encode._command(source, jobs, [folder / f"{name}.mp4" for name in VARIANTS])
        together += children_s(command)
        raw = [folder / f"{name}.yuv" for name in VARIANTS]
        # The same graph, its pictures thrown away, or kept raw: what stands before the first -map.
        graph = command[: command.index("-map")]
        ends = [command[at + 1] for at, word in enumerate(command) if word == "-map"]
        strict = ["-filter_complex_threads", "1", "-noauto_conversion_filters"]
        thrown = [word for end in ends for word in ("-map", end, "-fps_mode", "passthrough", "-f", "null", "-")]
        apart += children_s([*graph, *thrown, *strict, *quiet])
        kept = [
            word
            for end, path in zip(ends, raw, strict=True)
            for word in ("-map", end, "-fps_mode", "passthrough", "-f", "rawvideo", str(path))
        ]
        children_s([*graph, *kept, *strict, *quiet])
        for (variant, (width, height), tag), path in zip(jobs, raw, strict=True):
            options = [(f"-{key}", value) for key, value in encode._mp4_options(variant, tag).items()]
            read = [encode.ffmpeg_program(), *quiet, "-f", "rawvideo", "-s", f"{width}x{height}"]
            read += ["-pix_fmt", "yuv420p", "-threads", "1", "-i", str(path)]
            out = [str(word) for pair in options for word in pair]
            apart += children_s([*read, *out, str(folder / "apart.mp4")]) - children_s([*read, "-f", "null", "-"])
            path.unlink()
    return together / apart


def children_s(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=60, help="clips a round, spread over the folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", action="store_true", help="the one ffmpeg call against its parts apart")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    sources = found[:: max(1, len(found) // args.clips)][: args.clips]
    if args.parts:
        with tempfile.TemporaryDirectory() as folder:
            shares = [parts_ratio(sources, Path(folder)) for _ in range(args.rounds)]
        print(f"{len(sources)} clips, one call / parts apart: {statistics.median(shares):.3f} "
              f"({min(shares):.3f} to {max(shares):.3f})")  # fmt: skip
        return
    sizes = []
    for source in sources:
        with av.open(str(source)) as container:
            sizes.append((container.streams.video[0].width, container.streams.video[0].height))
    ratios, seconds = [], []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
            sides = {
                "ours": lambda folder=Path(a): ours(sources, folder, VARIANTS),
                "theirs": lambda folder=Path(b): theirs(sources, folder, sizes, VARIANTS),
            }
            used = {}
            for side in sorted(sides, reverse=number % 2 == 1):
                start = cpu_s()
                sides[side]()
                used[side] = cpu_s() - start
            size = {"ours": sum(p.stat().st_size for p in Path(a).rglob("*.mp4")),
                    "theirs": sum(p.stat().st_size for p in Path(b).rglob("*.mp4"))}  # fmt: skip
        ratios.append(used["ours"] / used["theirs"])
        seconds.append(used)
        print(f"round {number}: ours {used['ours']:.1f} s CPU, theirs {used['theirs']:.1f} s, ratio {ratios[-1]:.3f}")
    print(
        f"{len(sources)} clips x {len(VARIANTS)} variants, {args.rounds} rounds: CPU ratio median "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
        f"bytes {size['ours'] / size['theirs']:.3f}"
    )
    if args.json:
        args.json.write_text(json.dumps({"ratios": ratios, "seconds": seconds, "bytes": size, "clips": len(sources)}))


if __name__ == "__main__":
    main()
