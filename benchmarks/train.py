"""What training waits for: clips a second of reading alone, of the network alone, and of both together.

    python benchmarks/train.py slowonly_tiny --data data/NAME/256p [--data data/NAME/frames] [--out train.json]
    python benchmarks/train.py slowonly_r50_4x16 --data data/NAME/320p --device cuda --dtype bf16 --batch 32 --steps 50
    python benchmarks/train.py slowfast_r50_8x8 --multigrid

reading    ``TrainingClips`` with 1 and 2 workers, nothing kept in memory
network    ``models.training.loop`` fed from memory; "plain" is the shortest loop that does the same in eager float32:
           both take turns, so that what else the machine does hits both
both       the loop on the files; its goal is 90 % of the smaller of the two before
_cpu_      the same by seconds of CPU, all threads, which other programs on the machine hardly move; on a CPU, where
           both want the same cores, "both" can have no more than the two together take
multigrid  the work of all epochs, in multiply-adds of the batches' shapes, against the recipe without multigrid

With ``--peak-tflops`` the network's rate is also given as a share of that (three times the forward pass; one
multiply-add is two operations).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from datakit import manifest
from models import cost, zoo
from models.training import loop, multigrid, recipe
from models.training.data import Batch, TrainingClips
from models.training.multigrid import Grid


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("network")
    parser.add_argument("--data", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--recipe")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, default=12, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, action="append", default=[], help="default: 1 and 2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the device in --dtype")
    parser.add_argument("--multigrid", action="store_true", help="only the work that multigrid saves")
    parser.add_argument("--out", type=Path, help="JSON; default: stdout")
    args = parser.parse_args()
    found = multigrid_gain(args.network, args.recipe) if args.multigrid else throughput(args)
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def throughput(args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    how = recipe.get(args.recipe or zoo.recipe_name(args.network), batch=args.batch)
    data = [(folder, manifest.read(folder)) for folder in args.data]
    num_classes = len(data[0][1].classes) if data else 400
    found: dict[str, Any] = {
        "network": args.network, "device": args.device, "dtype": args.dtype, "compile": args.compile,
        "batch": how.batch, "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)

    def new_net() -> zoo.Recognizer:
        torch.manual_seed(0)
        return zoo.create(args.network, num_classes=num_classes)

    ours, plain = [], []
    for _ in range(args.rounds):
        net = new_net()
        ours.append(loop_rate(net, Fed(net.spec, how.batch, args.steps), how, args, device))
        plain.append(plain_rate(new_net(), how, args.steps, device))
    found |= rates("network", ours) | rates("plain_eager_fp32", plain)
    for at, name in enumerate(("times_plain", "times_plain_cpu")):
        found[name] = round(statistics.median(a[at] / b[at] for a, b in zip(ours, plain, strict=True)), 3)
    madds = multiply_adds(new_net(), whole_grid(net.spec))
    found["multiply_adds_a_clip"] = madds
    if args.peak_tflops:
        found["share_of_peak"] = round(6 * madds * found["network_clips_per_s"] / (args.peak_tflops * 1e12), 4)
    found["data"] = []
    for folder, listed in data:
        usable = [clip for clip in listed.split("train") if clip.path is not None and clip.label_index >= 0]
        row: dict[str, Any] = {"folder": folder.name, "clips": len(usable)}
        for workers in args.workers or [1, 2]:
            net = new_net()
            clips = TrainingClips(usable[: how.batch * args.steps], net.spec, how, seed=0, cache_bytes=0)
            reading = rates("reading", [reading_rate(clips, workers) for _ in range(args.rounds)])
            both = rates("both", [loop_rate(net, clips, how, args, device, workers=workers)])
            least = min(reading["reading_clips_per_s"], found["network_clips_per_s"])
            cpu = 1 / reading["reading_clips_per_cpu_s"] + 1 / found["network_clips_per_cpu_s"]
            row[f"workers_{workers}"] = {
                **reading,
                **both,
                "both_of_the_smaller": round(both["both_clips_per_s"] / least, 3),
                "both_of_the_two_by_cpu": round(both["both_clips_per_cpu_s"] * cpu, 3),
            }
        found["data"].append(row)
    return found


Rate = tuple[float, float]  # clips a second, clips a second of CPU


def rates(name: str, found: Sequence[Rate]) -> dict[str, float]:
    return {
        f"{name}_clips_per_s": round(statistics.median(one for one, _ in found), 2),
        f"{name}_clips_per_cpu_s": round(statistics.median(one for _, one in found), 2),
    }


class Fed:
    """One batch in memory, handed out ``steps`` times an epoch: what the network could do if data cost nothing."""

    def __init__(self, spec: zoo.ModelSpec, batch: int, steps: int) -> None:
        frames = spec.clip_len * (spec.num_segments or 1) * len(spec.frame_offsets)
        shape = (batch, len(spec.mean), frames, spec.train_crop_px, spec.train_crop_px)
        self.batch = Batch(
            x=torch.randint(0, 256, shape, dtype=torch.uint8),
            labels=torch.randint(0, spec.num_classes, (batch,)),
            failed=(),
        )
        self.num_clips = batch * steps

    def __len__(self) -> int:
        return self.num_clips

    def batches(
        self, epoch: int, *, num_workers: int, grids: Sequence[Grid], rank: int, num_ranks: int
    ) -> Iterator[Batch]:
        return (self.batch for _ in grids)


def loop_rate(
    net: zoo.Recognizer,
    clips: Any,
    how: recipe.Recipe,
    args: argparse.Namespace,
    device: torch.device,
    workers: int = 0,
) -> Rate:
    """Of the loop, all but its first two steps (and what they compile or plan)."""
    with tempfile.TemporaryDirectory() as folder:
        steps = loop.train(
            net, clips, how, out=Path(folder), arguments={}, device=device, num_workers=workers,
            precision=args.dtype, compiled=args.compile,
        )  # fmt: skip
        return rate((step.clips for step in steps), device, num_steps=args.steps)


def plain_rate(net: zoo.Recognizer, how: recipe.Recipe, num_steps: int, device: torch.device) -> Rate:
    """What is in every tutorial: eager, float32, contiguous, the loss read at every step."""
    net.to(device).train()
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=how.momentum, weight_decay=how.weight_decay)
    batch = Fed(net.spec, how.batch, 1).batch

    def steps() -> Iterator[int]:
        while True:
            loss = functional.cross_entropy(net(net.normalise(batch.x.to(device).float())), batch.labels.to(device))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 40.0)
            optimiser.step()
            loss.item()
            yield len(batch.labels)

    return rate(steps(), device, num_steps=num_steps)


def reading_rate(clips: TrainingClips, workers: int) -> Rate:
    return rate((len(batch.labels) for batch in clips.batches(0, num_workers=workers)), torch.device("cpu"))


def rate(counts: Iterator[int], device: torch.device, *, num_steps: int = 10**9, warm: int = 2) -> Rate:
    """The first ``warm`` steps are not counted, where there are more."""
    marks = []
    total = 0
    for count in counts:
        total += count
        if device.type == "cuda" and len(marks) == warm - 1:
            torch.cuda.synchronize(device)  # what is queued of the steps before is theirs
        marks.append((total, time.perf_counter(), time.process_time()))
        if len(marks) == num_steps:
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        marks[-1] = (marks[-1][0], time.perf_counter(), time.process_time())
    begin, end = marks[min(warm, len(marks) - 1) - 1], marks[-1]
    clips = end[0] - begin[0]
    return clips / max(end[1] - begin[1], 1e-9), clips / max(end[2] - begin[2], 1e-9)


def whole_grid(spec: zoo.ModelSpec) -> Grid:
    return Grid(num_clips=1, clip_len=spec.clip_len, crop_px=spec.train_crop_px, max_interval=spec.frame_interval)


def multiply_adds(net: zoo.Recognizer, grid: Grid) -> int:
    """Of one forward pass of one clip of the grid's shape."""
    frames = grid.clip_len * (net.spec.num_segments or 1)
    return cost.multiply_adds(zoo.hollow(net.spec), cost.input_shape(net.spec, frames, grid.crop_px))


def multigrid_gain(network: str, name: str | None, num_clips: int = 240_000) -> dict[str, Any]:
    """Multiply-adds of all epochs with and without; 240 000 clips is about the size of Kinetics-400."""
    net = zoo.create(network, num_classes=400)
    cache: dict[tuple[int, int], int] = {}

    def a_clip(grid: Grid) -> int:
        shape = (grid.clip_len, grid.crop_px)
        if shape not in cache:
            cache[shape] = multiply_adds(net, grid)
        return cache[shape]

    def work(cycle: multigrid.Cycle) -> tuple[float, int]:
        total = steps = 0
        for epoch in range(cycle.recipe.epochs):
            grids = cycle.grids(epoch, num_clips)
            steps += len(grids)
            total += sum(grid.num_clips * a_clip(grid) for grid in grids)
        return total, steps

    def base(kind: str) -> recipe.Recipe:
        return recipe.get(name or "pyslowfast_stepwise", processes=8, multigrid=kind)

    plain, plain_steps = work(multigrid.cycle(base("none"), net.spec))
    found: dict[str, Any] = {"network": network, "recipe": base("none").name, "epochs": base("none").epochs}
    for kind in ("short", "both"):
        cycle = multigrid.cycle(base(kind), net.spec)
        total, steps = work(cycle)
        found[kind] = {
            "epochs": cycle.recipe.epochs,
            "times_less_work": round(plain / total, 2),
            "times_less_work_for_equal_epochs": round(plain / total * cycle.recipe.epochs / base("none").epochs, 2),
            "times_fewer_steps": round(plain_steps / steps, 2),
        }
    return found


if __name__ == "__main__":
    main()
