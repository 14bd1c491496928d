"""Are the bytes of a variant the same with 1 and 2 jobs, and with SIMD switched off in ffmpeg and x264?

    python benchmarks/same_bytes.py FOLDER [--clips 20]

SIMD off means `-cpuflags 0` for ffmpeg's decoders and scaler and `asm=0` for x264: the nearest thing to another
processor that one machine offers (zimg has no such switch). Prints how many files of each variant are equal, and
names those that are not.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from unittest import mock

from datakit import catalog, encode, runner
from datakit.annotations import VIDEO_SUFFIXES, ClipSpec
from datakit.prepare import Job, Target, encode_source

VARIANTS = ("256p", "320p", "340x256")


def without_simd(command: list[str]) -> list[str]:
    plain = [word.replace("threads=1", "threads=1:asm=0") if word.startswith("threads=1") else word for word in command]
    return [plain[0], "-cpuflags", "0", *plain[1:]]


def encode_all(sources: list[Path], folder: Path, num_jobs: int, simd: bool) -> dict[str, str]:
    jobs = [
        Job(
            spec=ClipSpec(id=source.name, video=source.name, split="val", label=None),
            source=source,
            targets=tuple(
                Target(variant=catalog.variant(name), folder=folder / name, name=f"{source.name}.mp4")
                for name in VARIANTS
            ),
            work=folder,
            allow_damaged=2.0,
        )
        for source in sources
    ]
    if simd:
        list(runner.run(encode_source, jobs, name=lambda job: job.id, stage="s", num_jobs=num_jobs, notes=folder))
    else:
        make = encode._command
        with mock.patch.object(encode, "_command", lambda *args: without_simd(make(*args))):
            for job in jobs:
                encode_source(job)
    return {str(path.relative_to(folder)): encode.sha256_file(path) for path in sorted(folder.rglob("*.mp4"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=20)
    args = parser.parse_args()
    found = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    sources = found[:: max(1, len(found) // args.clips)][: args.clips]
    results = {}
    for name, num_jobs, simd in (("1 job", 1, True), ("2 jobs", 2, True), ("no SIMD", 1, False)):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = encode_all(sources, Path(folder), num_jobs, simd)
    reference = results["1 job"]
    for name in ("2 jobs", "no SIMD"):
        other = results[name]
        differing = sorted(key for key in reference.keys() | other.keys() if reference.get(key) != other.get(key))
        print(
            f"1 job against {name}: {len(reference) - len(differing)} of {len(reference)} files equal",
            *differing,
            sep="\n  ",
        )


if __name__ == "__main__":
    main()
