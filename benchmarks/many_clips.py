"""What ``prepare`` costs when nothing is left to do: memory and processor time of the process that holds the journal.

    python benchmarks/many_clips.py --clips 650000 --variants 256p,320p,340x256

The sources and the finished files are of one byte each, the journal says of them what it says after a real encode.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from datakit import catalog, folders
from datakit.annotations import JOURNAL, ClipSpec
from datakit.catalog import Variant
from datakit.journal import Journal, Outcome
from datakit.layout import SOURCE_STAGE, final_path, key, stage_of

NAME = "k700-2020"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
BATCH = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=650_000)
    parser.add_argument("--variants", default="256p,320p,340x256")
    parser.add_argument("--folder", type=Path, help="where it is made (default: the temporary folder)")
    args = parser.parse_args()
    variants = [catalog.variant(name) for name in args.variants.split(",")]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root, raw = Path(folder) / "data", Path(folder) / "raw"
        make(root, raw, args.clips, variants)
        command = [sys.executable, "-m", "datakit", "prepare", NAME, "--raw", str(raw), "--data-root", str(root),
                   "--split", "train", "--jobs", "1"]  # fmt: skip
        for variant in variants:
            command += ["--variant", variant.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        if " 0 to encode" not in done.stderr:
            sys.exit(done.stderr)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures = {"clips": args.clips, "variants": len(variants), "peak_memory_MB": round(used.ru_maxrss / 1024),
                   "cpu_s": round(used.ru_utime + used.ru_stime, 1)}  # fmt: skip
        print(json.dumps(figures, indent=1))


def make(root: Path, raw: Path, num_clips: int, variants: list[Variant]) -> None:
    """A list, its sources, the finished files and the journal."""
    dataset = catalog.dataset(NAME)
    assert dataset is not None
    chance = random.Random(0)
    specs = []
    for number in range(num_clips):
        video = "".join(chance.choices(ALPHABET, k=11))
        specs.append(
            ClipSpec(id=f"{video}_000010_000020", video=video, split="train",
                     label=dataset.classes[number % len(dataset.classes)], start_s=10.0, end_s=20.0)
        )  # fmt: skip
    (raw / "annotations").mkdir(parents=True)
    with (raw / "annotations/train.csv").open("w") as file:
        file.write("label,youtube_id,time_start,time_end,split\n")
        file.writelines(f'"{spec.label}",{spec.video},10,20,train\n' for spec in specs)
    for spec in specs:
        (raw / f"{spec.id}.mp4").write_bytes(b"x")
        for variant in variants:
            path = root / NAME / variant.name / final_path(spec, variant, dataset)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    with Journal.open(root / NAME / JOURNAL) as journal:
        for start in range(0, num_clips, BATCH):
            journal.add(row for spec in specs[start : start + BATCH] for row in rows(root, raw, spec, variants, chance))


def rows(root: Path, raw: Path, spec: ClipSpec, variants: list[Variant], chance: random.Random) -> Iterator[Outcome]:
    """What an encode writes down of one source and each of its files."""
    dataset = catalog.dataset(NAME)
    source_sha256 = chance.randbytes(32).hex()
    data = {"sha256": source_sha256, "stat": folders.stat(raw / f"{spec.id}.mp4")}
    yield Outcome(id=spec.id, stage=SOURCE_STAGE, key=source_sha256, status="ok", seconds=2.3, data=data)
    for variant in variants:
        name = final_path(spec, variant, dataset)
        facts = {"share": 1.0, "frames": 300, "width": 456, "height": 256, "fps": 29.97, "duration_s": 10.01,
                 "keyframes": list(range(0, 300, 32)), "bytes": 380_000 + chance.randrange(100_000),
                 "sha256": chance.randbytes(32).hex(), "content_sha256": chance.randbytes(32).hex(),
                 "stat": folders.stat(root / NAME / variant.name / name), "name": str(name),
                 "encoder": "ffmpeg n9.0.2-17-g2a571b6068-20260930 libx264"}  # fmt: skip
        yield Outcome(id=spec.id, stage=stage_of(variant.name), key=key(source_sha256, variant, spec), status="ok",
                      seconds=2.3, data=facts)  # fmt: skip


if __name__ == "__main__":
    main()
