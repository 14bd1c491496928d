"""The same set prepared by loky and by a Dask cluster of two worker processes, in turns; then with a worker killed.

    python benchmarks/cluster.py VIDEO [--clips 200] [--seconds 1.5] [--rounds 2]

The clips are pieces of VIDEO. Wall time is that of the whole command; CPU is of this process and all below it: the
command, its workers, the scheduler, every ffmpeg. All sets must have the same bytes: videos, lists, manifest and lock.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import distributed
import psutil

from datakit import encode, probe


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cut(args.video, folder / "raw", args.clips, args.seconds)
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster:
            compare(folder, cluster, args.rounds)


def compare(folder: Path, cluster: distributed.LocalCluster, rounds: int) -> None:
    on_dask = ["--cluster", cluster.scheduler_address]
    loky, dask, states = [], [], set()
    for number in range(rounds):
        for words, times in ((["--jobs", "2"], loky), (on_dask, dask)):
            root = folder / f"{number}-{words[0]}"
            start, start_cpu = time.perf_counter(), cpu_s()
            finish(prepare(folder, root, words))
            times.append((time.perf_counter() - start, cpu_s() - start_cpu))
            states.add(state(root))
            print(f"{words[0]:10} {times[-1][0]:7.1f} s wall {times[-1][1]:7.1f} s CPU", flush=True)
    for number, what in enumerate(("wall", "CPU")):
        ratios = [there[number] / here[number] for here, there in zip(loky, dask, strict=True)]
        print(f"dask / loky, {what}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"different sets: {len(states)}")
    for words in (["--jobs", "2"], on_dask):
        root = folder / f"killed-{words[0]}"
        process = prepare(folder, root, words)
        while len(list(root.rglob("*.mp4"))) < 20:
            time.sleep(0.05)
        killed = kill_a_worker(process.pid if words[0] == "--jobs" else os.getpid())
        finish(process)
        states.add(state(root))
        print(f"{words[0]:10} worker {killed} killed with -9: different sets: {len(states)}", flush=True)


def cut(video: Path, raw: Path, num_clips: int, seconds: float) -> None:
    """Pieces that begin at different moments, so that no two are equal."""
    length = probe.media_info(video).duration_s - seconds
    for number in range(num_clips):
        path = raw / "val" / f"class {number % 7}" / f"{number:04}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = f"{length * number / num_clips:.3f}"
        subprocess.run(
            [encode.ffmpeg_program(), "-v", "error", "-ss", start, "-i", str(video), "-t", str(seconds), "-an",
             "-c:v", "libx264", "-preset", "ultrafast", str(path)], check=True,
        )  # fmt: skip


def prepare(folder: Path, root: Path, words: list[str]) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "datakit",
        "prepare",
        "mine",
        "--raw",
        str(folder / "raw"),
        "--data-root",
        str(root),
    ]
    variants = ["--variant", "256p", "--variant", "340x256"]
    return subprocess.Popen([*command, *variants, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        sys.exit(f"prepare ended with {process.returncode}")


def cpu_s() -> float:
    """Of this process, of all below it that live, and of those that ended."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


def kill_a_worker(parent: int) -> int:
    """kill -9 for a process that encodes: a child of loky's, or of Dask's nanny."""
    while True:
        for child in psutil.Process(parent).children(recursive=True):
            try:
                if any("ffmpeg" in one.name() for one in child.children()) and re.search("python", child.name()):
                    child.send_signal(signal.SIGKILL)
                    return int(child.pid)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)


def state(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.name.startswith("journal."):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
