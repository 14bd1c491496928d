"""What the journal costs: rows in, opening, reading a stage, size on disk.

    python benchmarks/journal.py --clips 650000 --stages 4

Rows are written as ``prepare`` writes them: one transaction an item with the row of its source and of each variant, in
an order that is nearly that of the ids, with the facts that an encode records.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from datakit.annotations import ClipSpec
from datakit.journal import Journal, Outcome

WINDOW = 64  # items that are at work at the same time, and finish in any order


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=650_000)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where the journal is made (default: the temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(json.dumps(measure(Path(folder) / "journal.sqlite", args.clips, args.stages), indent=1))


def measure(path: Path, num_clips: int, num_stages: int) -> dict[str, float]:
    chance = random.Random(0)
    names = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    ids = sorted({"".join(chance.choices(names, k=11)) + "_000010_000020" for _ in range(num_clips)})
    specs = [
        ClipSpec(
            id=one,
            video=one[:11],
            split="train",
            label="a class",
            start_s=10,
            end_s=20,
            source=Path(f"/raw/{one}.mp4"),
        )
        for one in ids
    ]
    figures: dict[str, float] = {"clips": len(ids), "rows": len(ids) * num_stages}
    with Journal.open(path) as journal, timed(figures, "list_in_s"):
        journal.replace_clips({"train"}, specs)
    with Journal.open(path) as journal:
        start = time.perf_counter()
        for item in nearly_sorted(ids, chance):
            journal.add(rows(item, num_stages))
        figures["rows_a_second"] = round(len(ids) * num_stages / (time.perf_counter() - start))
        figures["one_item_ms"] = round(1000 * (time.perf_counter() - start) / len(ids), 3)
    figures["bytes_a_row"] = round(path.stat().st_size / (len(ids) * num_stages))
    figures["MB"] = round(path.stat().st_size / 1e6)
    with timed(figures, "open_s"), Journal.open(path):
        pass
    with timed(figures, "read_list_s"), Journal.read(path) as journal:
        assert len(journal.clips()) == len(ids)
    with timed(figures, "read_one_stage_s"), Journal.read(path) as journal:
        assert len(journal.outcomes("encode:1")) == len(ids)
    with timed(figures, "read_tries_s"), Journal.read(path) as journal:
        assert len(journal.tries("encode:1")) == len(ids)
    with timed(figures, "same_list_again_s"), Journal.open(path) as journal:
        journal.replace_clips({"train"}, specs)
    figures["peak_memory_MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return figures


class timed:
    def __init__(self, figures: dict[str, float], name: str) -> None:
        self.figures, self.name = figures, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.figures[self.name] = round(time.perf_counter() - self.start, 2)


def nearly_sorted(ids: list[str], chance: random.Random) -> Iterator[str]:
    at_work: list[str] = []
    for one in ids:
        at_work.append(one)
        if len(at_work) == WINDOW:
            yield at_work.pop(chance.randrange(WINDOW))
    yield from at_work


def rows(item: str, num_stages: int) -> list[Outcome]:
    sha256 = f"{hash(item) & (1 << 256) - 1:064x}"
    source = Outcome(id=item, stage="source", key=sha256, status="ok", seconds=5.1,
                     data={"sha256": sha256, "stat": [1_234_567, 1_700_000_000_000_000_000]})  # fmt: skip
    facts = {"share": 1.0, "frames": 300, "width": 456, "height": 256, "fps": 29.97002997, "duration_s": 10.01,
             "keyframes": list(range(0, 300, 32)), "bytes": 901_234, "sha256": sha256, "content_sha256": sha256,
             "stat": [901_234, 1_700_000_000_000_000_000], "name": f"train/a_class/{item}.mp4",
             "encoder": "libx264 of ffmpeg version 7.0.2-static"}  # fmt: skip
    encodes = [Outcome(id=item, stage=f"encode:{number}", key=sha256[:12], status="ok", seconds=5.1, data=facts)
               for number in range(1, num_stages)]  # fmt: skip
    return [source, *encodes]


if __name__ == "__main__":
    main()
