"""python -m demo: a generated data set through every stage of the suite, with the commands that a user would type.

Each command is printed before it runs. Every one of them goes on where an earlier run stopped, so a second
``python -m demo`` takes little time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datakit import console
from datakit.errors import EXIT_BUG, EXIT_DONE, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from datakit.manifest import Clip

VARIANTS = ("256p", "320p", "340x256")
STREAMS = {"rgb": "slowonly_tiny", "diff": "slowonly_tiny_diff"}
MODES = ("efficient", "accurate")
NETWORK_FRAMES = 8
QUICK_SOURCES = 4
QUICK_EPOCHS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One command, as arguments of ``python -m``. ``some_may_fail``: a clip that is broken is no reason to stop.

    Neighbours with the same ``together`` run side by side: a tiny network does not fill two cores.
    """

    name: str
    arguments: tuple[str, ...]
    some_may_fail: bool = False
    together: str = ""

    @property
    def typed(self) -> str:
        return shlex.join(("python", "-m", *self.arguments))


def stages(raw: Path, data_root: Path, out: Path, *, quick: bool) -> list[Stage]:
    """All commands, in order."""
    sources = ("--sources", str(QUICK_SOURCES)) if quick else ()
    epochs = ("--epochs", str(QUICK_EPOCHS)) if quick else ()
    root = ("--data-root", str(data_root))
    prepare = ["datakit", "prepare", "demo", "--raw", str(raw), "--labels", str(raw / "labels.csv")]
    for variant in VARIANTS:
        prepare += ["--variant", variant]
    data = str(data_root / "demo" / VARIANTS[0])
    found = [
        Stage(name="generate", arguments=("demo.generate", "--out", str(raw), *sources)),
        Stage(name="prepare", arguments=(*prepare, *root), some_may_fail=True),
        Stage(name="verify", arguments=("datakit", "verify", "demo", *root)),
        Stage(name="lists", arguments=("datakit", "lists", "demo", *root)),
        Stage(name="failed", arguments=("datakit", "failed", "demo", *root)),
    ]
    for stream, network in STREAMS.items():
        train = ("models.train", network, "--data", data, "--out", str(out / stream), "--recipe", "tiny", *epochs)
        found.append(Stage(name=f"train {stream}", arguments=train, together="train"))
    for mode in MODES:
        for stream in STREAMS:
            test = ("evalkit.run", "--mode", mode, str(out / stream / "ckpt.pth"), "--data", data)
            to = ("--out", str(tested(out, stream, mode)), *(("--save-views",) if mode == "accurate" else ()))
            name = f"test {stream} {mode}"
            found.append(Stage(name=name, arguments=(*test, *to), some_may_fail=True, together=mode))
    both = [str(tested(out, stream, "accurate") / "scores.npz") for stream in STREAMS]
    fused = ("evalkit", "fuse", *both, "--weights", "1:1", "--out", str(out / "fused"))
    found.append(Stage(name="fuse", arguments=fused))
    for stream in STREAMS:
        sides = [str(tested(out, stream, mode) / "scores.npz") for mode in MODES]
        found.append(Stage(name=f"compare {stream}", arguments=("evalkit", "compare", *sides)))
    folders = [str(tested(out, stream, mode)) for stream in STREAMS for mode in MODES]
    page = ("evalkit", "report", *folders, str(out / "fused"), "--out", str(out / "report.html"), *root)
    found.append(Stage(name="report", arguments=page))
    return found


def tested(out: Path, stream: str, mode: str) -> Path:
    return out / f"{stream}-{mode}"


def run(group: Sequence[Stage]) -> list[int]:
    """Run commands side by side and wait for all of them; returns their exit codes.

    What they print comes whole, one after the other; their progress, on stderr, as it comes.
    """
    behind = " &" if len(group) > 1 else ""
    print("".join(f"\n$ {stage.typed}{behind}" for stage in group), flush=True)
    threads = max(1, (os.cpu_count() or 1) // len(group))
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in group] if behind else [None]
        commands = [[sys.executable, "-m", *stage.arguments] for stage in group]
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if behind else {})
        running = [
            stack.enter_context(subprocess.Popen(command, stdout=output, env=environment))
            for command, output in zip(commands, outputs, strict=True)
        ]
        codes = [process.wait() for process in running]
        for output in outputs:
            if output is not None:
                output.seek(0)
                sys.stdout.write(output.read().decode(errors="replace"))
    sys.stdout.flush()
    return codes


def table(out: Path) -> list[str]:
    """Stream, mode, top-1, mean class, scored of asked for: a line each, from the files that the commands wrote."""
    rows = [("stream", "mode", "top-1", "mean class", "scored")]
    for stream in STREAMS:
        for mode in MODES:
            rows.append((stream, mode, *_numbers(tested(out, stream, mode))))
    rows.append(("fused 1:1", "accurate", *_numbers(out / "fused")))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _numbers(folder: Path) -> tuple[str, str, str]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    top1, mean_class = (f"{100 * found[key]:.1f} ± {100 * found[f'{key}_se']:.1f}" for key in ("top1", "mean_class"))
    return top1, mean_class, f"{found['n']} of {found['requested']}"


def absent(clips: Iterable[Clip]) -> list[str]:
    """How many clips have no file, by kind, and each one's reason."""
    lost = [clip for clip in clips if clip.path is None]
    lines = [f"not there: {count} {kind}" for kind, count in sorted(Counter(clip.status for clip in lost).items())]
    return lines + [f"  {clip.id} ({clip.split}) {clip.status}: {_first(clip.reason)}" for clip in lost]


def _first(reason: str | None) -> str:
    """The first thing that a decoder complained about says enough here."""
    return (reason or "").partition(";")[0]


def short(clips: Iterable[Clip]) -> list[str]:
    """Clips that are there, with fewer frames than the networks look at: they are played more than once."""
    return [
        f"very short: {clip.id} ({clip.split}), frames: {clip.frames}"
        for clip in clips
        if clip.frames is not None and clip.frames < NETWORK_FRAMES
    ]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Generate videos, prepare, verify, train, test, fuse, compare, report: about 5 minutes on 2 cores.",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="where prepared sets live (default: demo-data)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="networks, scores and the page (default: runs/demo)")
    parser.add_argument("--quick", action="store_true", help="few videos, a little training: a minute, to see it run")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    kind = "-quick" if asked.quick else ""
    data_root = asked.data or Path(f"demo-data{kind}")
    out = asked.out or Path(f"runs/demo{kind}")
    began = time.monotonic()
    seconds = {}
    todo = stages(data_root / "raw", data_root, out, quick=asked.quick)
    for name, members in groupby(todo, key=lambda stage: stage.together or stage.name):
        group = list(members)
        start = time.monotonic()
        codes = run(group)
        seconds[name] = time.monotonic() - start
        for stage, code in zip(group, codes, strict=True):
            if code != EXIT_DONE and not (code == EXIT_SOME_FAILED and stage.some_may_fail):
                ended = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
                print(f"\nstopped: {stage.name!r} {ended}. To go on: python -m demo. Its command:", file=sys.stderr)
                print(stage.typed, file=sys.stderr)
                return code if code > 0 else EXIT_BUG
        print(f"({console.duration(seconds[name])})", flush=True)

    from datakit import manifest

    clips = manifest.read(data_root / "demo" / VARIANTS[0]).clips
    there = sum(clip.path is not None for clip in clips)
    print("\n" + "\n".join(table(out)))
    print(f"\n{len(clips)} clips listed, {there} prepared")
    print("\n".join(absent(clips) + short(clips)))
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:4]
    took = ", ".join(f"{name} {console.duration(seconds[name])}" for name in slowest)
    print(f"\n{console.duration(time.monotonic() - began)} in all; most of it: {took}")
    print(f"page: {out / 'report.html'}")
    return EXIT_DONE


if __name__ == "__main__":
    console.run(main)
