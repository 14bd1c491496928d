"""A training on clips in memory, as a program that torchrun can start: python train_worker.py OUT JSON

JSON: {"batch", "epochs", "clips", "accumulate", "freeze_bn", "die_at"}; ``die_at``: the step at which the last process
is killed, the first time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from models import zoo
from models.training import finetune, loop, recipe
from models.training.data import Batch, order
from models.training.multigrid import Grid

HOW = dataclasses.replace(
    recipe.get("tiny"), batch=4, lr_batch=4, lr=0.05, epochs=2, warmup_epochs=0.5, validate_every=1, label_smoothing=0.0
)


class MemoryClips:
    """Random clips, brighter in class 1; what ``data.TrainingClips`` is for files. Cuts any grid out of them."""

    def __init__(
        self,
        num_clips: int,
        *,
        clip_len: int = 4,
        num_segments: int = 1,
        px: int = 16,
        channels: int = 3,
        seed: int = 0,
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(num_clips) % 2
        self.num_segments = num_segments
        shape = (num_clips, channels, clip_len * num_segments, px, px)
        self.x = torch.randint(0, 200, shape, dtype=torch.uint8, generator=random)
        self.x += (55 * self.labels).to(torch.uint8).view(-1, 1, 1, 1, 1)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, epoch: int, *, num_workers: int, grids: Sequence[Grid], rank: int, num_ranks: int
    ) -> Iterator[Batch]:
        places = torch.from_numpy(order(len(self), seed=self.seed, epoch=epoch))
        for grid, share in zip(grids, shares(places, grids), strict=True):
            mine = share[rank::num_ranks]
            frames = grid.clip_len * self.num_segments
            x = self.x[mine][:, :, :frames, : grid.crop_px, : grid.crop_px]
            yield Batch(x=x, labels=self.labels[mine], failed=())


def shares(places: torch.Tensor, grids: Sequence[Grid]) -> Iterator[torch.Tensor]:
    begin = 0
    for grid in grids:
        yield places[begin : begin + grid.num_clips]
        begin += grid.num_clips


def small(network: str = "slowonly_tiny", **overrides: Any) -> zoo.Recognizer:
    values: dict[str, Any] = {"num_classes": 2, "base_channels": 4, "train_crop_px": 16, **overrides}
    if network.startswith("slowonly"):
        values.setdefault("clip_len", 4)
    return zoo.create(network, **values)


def main(out: Path, wanted: dict[str, Any]) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        loop.join(torch.device("cpu"))
    rank, num_ranks = loop.place()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    net = small()
    finetune.freeze(net, batch_norm=wanted.get("freeze_bn", True))
    how = dataclasses.replace(HOW, batch=wanted["batch"] * num_ranks, epochs=wanted.get("epochs", 2))
    steps = loop.train(
        net,
        MemoryClips(wanted.get("clips", 20)),
        how,
        out=out,
        arguments={"batch": how.batch},
        device=torch.device("cpu"),
        validate=lambda net: {"top1": 0.5},
        accumulate=wanted.get("accumulate", 1),
    )
    once = out / "died"
    for step in steps:
        if step.step == wanted.get("die_at") and rank == num_ranks - 1 and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if num_ranks > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
