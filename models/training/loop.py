"""The training loop: one process, a CPU or one GPU; killed at any instant, it goes on from the last whole epoch.

OUT/last.pth    everything a run goes on from, replaced as a whole after each epoch; also a checkpoint of ours
OUT/best.pth    the weights with the best top-1 of the validations so far
OUT/ckpt.pth    the weights in the end
OUT/log.jsonl   a line a step (loss, learning rate) and a line an epoch (speed, waiting, unreadable clips, validation)
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from datakit import files
from datakit.errors import DataError, UsageError

from .. import checkpoints
from ..zoo import Recognizer
from .data import Batch, TrainingClips
from .recipe import Recipe
from .schedule import learning_rate

log = logging.getLogger(__name__)
Validate = Callable[[Recognizer], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the optimiser. ``loss``: mean over the clips of its batch."""

    epoch: int
    step: int
    loss: float
    lr: float
    clips: int


@dataclass(slots=True, kw_only=True)
class Epoch:
    """What happened in an epoch. ``failed``: id -> why the clip could not be read."""

    epoch: int
    steps: list[Step] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    waiting_s: float = 0.0
    seconds: float = 0.0
    metrics: dict[str, float] | None = None

    def waited(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass on the batches that hold clips; add up the time spent waiting for them."""
        asked = time.monotonic()
        for batch in batches:
            self.waiting_s += time.monotonic() - asked
            self.failed |= dict(batch.failed)
            if len(batch.labels):
                yield batch
            asked = time.monotonic()

    def line(self) -> dict[str, Any]:
        clips = sum(step.clips for step in self.steps)
        line: dict[str, Any] = {
            "epoch": self.epoch,
            "loss": sum(step.loss * step.clips for step in self.steps) / clips,
            "lr": self.steps[-1].lr,
            "clips": clips,
            "clips_per_s": round(clips / self.seconds, 3),
            "waiting_share": round(self.waiting_s / self.seconds, 4),
            "seconds": round(self.seconds, 3),
        }
        if self.failed:
            line["unreadable"] = self.failed
        return line | ({"val": self.metrics} if self.metrics else {})


@dataclass(slots=True, kw_only=True)
class State:
    """Where a run is. ``epochs`` are behind it; ``metrics`` are those of the last validation."""

    epochs: int = 0
    best_top1: float = -1.0
    best_epoch: int | None = None
    metrics: dict[str, float] | None = None


def train(
    net: Recognizer,
    clips: TrainingClips,
    recipe: Recipe,
    *,
    out: Path,
    arguments: Mapping[str, Any],
    device: torch.device,
    num_workers: int = 0,
    validate: Validate | None = None,
    deadline: float = math.inf,
) -> Iterator[Step]:
    """Train ``net`` and yield every step, from where the run in ``out`` stands; a finished one yields nothing.

    ``arguments``: plain values that decide the result; a run begun with others is refused (``UsageError``).
    ``validate``: gets the network in evaluation mode, returns metrics, "top1" among them. ``deadline``: by
    ``time.monotonic``; no epoch begins that would end after it if it took as long as the one before.
    Raises ``DataError`` when no clip of an epoch can be read or the loss is no longer a number.
    """
    net.to(device).to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.SGD(
        net.parameters(),
        lr=recipe.scaled_lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    state = resume(out, net, optimiser, arguments)
    for number in range(state.epochs, recipe.epochs):
        epoch = Epoch(epoch=number)
        net.train()
        for batch in epoch.waited(clips.batches(number, num_workers=num_workers)):
            done = len(epoch.steps)
            lr = learning_rate(recipe, number + done / clips.num_steps)
            loss = one_step(net, optimiser, batch, recipe, lr, device)
            if not math.isfinite(loss):
                lower = f"--lr {recipe.scaled_lr / 3:.2g}"
                raise DataError(
                    f"{out}: the loss is {loss} in epoch {number + 1}; start anew with a lower rate: {lower}"
                )
            epoch.steps.append(
                Step(epoch=number, step=number * clips.num_steps + done, loss=loss, lr=lr, clips=len(batch.labels))
            )
            yield epoch.steps[-1]
        if not epoch.steps:
            raise DataError(
                f"not one clip could be read; for instance {next(iter(epoch.failed.items()), 'none listed')}"
            )
        epoch.seconds = time.monotonic() - epoch.began
        state.epochs = number + 1
        if validate and (state.epochs == recipe.epochs or state.epochs % recipe.validate_every == 0):
            epoch.metrics = state.metrics = dict(validate(net.eval()))
            if epoch.metrics["top1"] > state.best_top1:
                state.best_top1, state.best_epoch = epoch.metrics["top1"], number
                checkpoints.save(out / "best.pth", net, epoch=number, metrics=epoch.metrics)
        write_log(out, epoch)
        save_state(out, net, optimiser, state, arguments)
        if time.monotonic() + (time.monotonic() - epoch.began) > deadline and state.epochs < recipe.epochs:
            log.info("time is up after epoch %d of %d; the same command goes on", state.epochs, recipe.epochs)
            break
    checkpoints.save(out / "ckpt.pth", net, epoch=state.epochs - 1, metrics=state.metrics)


def one_step(
    net: Recognizer, optimiser: torch.optim.Optimizer, batch: Batch, recipe: Recipe, lr: float, device: torch.device
) -> float:
    """Forward, backward, one step of the optimiser; the loss before it."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    x = batch.x.to(device, non_blocking=True).float()
    x = net.normalise(x).contiguous(memory_format=torch.channels_last_3d)
    labels = batch.labels.to(device, non_blocking=True)
    loss = functional.cross_entropy(net(x), labels, label_smoothing=recipe.label_smoothing)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if recipe.clip_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_grad_norm)
    optimiser.step()
    return float(loss.detach())


# ---- going on ----


def save_state(
    out: Path, net: Recognizer, optimiser: torch.optim.Optimizer, state: State, arguments: Mapping[str, Any]
) -> None:
    """Replace ``last.pth``. The data need no state: their draws follow from the seed and the epoch (``data``)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    training = {
        "state": asdict(state),
        "optimiser": optimiser.state_dict(),
        "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        "arguments": dict(arguments),
    }
    checkpoints.save(out / "last.pth", net, training=training)


def resume(out: Path, net: Recognizer, optimiser: torch.optim.Optimizer, arguments: Mapping[str, Any]) -> State:
    """Put network, optimiser and random generators where the run in ``out`` stands; a new run stays as it is."""
    if not (out / "last.pth").exists():
        files.write_text(out / "log.jsonl", "")
        return State()
    saved = torch.load(out / "last.pth", weights_only=True, map_location="cpu")
    training = saved["training"]
    refuse_changes(out, training["arguments"], arguments)
    net.body.load_state_dict(saved["state_dict"])
    optimiser.load_state_dict(training["optimiser"])
    torch.set_rng_state(training["random"]["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(training["random"]["cuda"])
    state = State(**training["state"])
    drop_later_lines(out / "log.jsonl", state.epochs)
    return state


def saved_state(out: Path) -> State:
    """Where the run in ``out`` stands."""
    saved = torch.load(out / "last.pth", weights_only=True, map_location="cpu")
    return State(**saved["training"]["state"])


def refuse_changes(out: Path, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` naming every argument that differs from the run's own."""
    keys = [key for key in {**begun, **now} if begun.get(key) != now.get(key)]
    changed = [f"{key} {begun.get(key)}, not {now.get(key)}" for key in keys]
    if changed:
        raise UsageError(
            f"the run in {out} was begun with {'; '.join(changed)}. Type the same arguments to go on, or another --out"
        )


def write_log(out: Path, epoch: Epoch) -> None:
    lines = [asdict(step) for step in epoch.steps] + [epoch.line()]
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    if epoch.metrics:
        loss, top1 = lines[-1]["loss"], 100 * epoch.metrics["top1"]
        log.info("epoch %d: loss %.4f, top-1 %.2f, %s clips/s", epoch.epoch + 1, loss, top1, lines[-1]["clips_per_s"])


def drop_later_lines(path: Path, epochs: int) -> None:
    """Keep the lines of the first ``epochs`` epochs: a killed run may have logged one that it did not save."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the kill hit while it was being written
            continue
        if entry["epoch"] < epochs:
            kept.append(line + "\n")
    files.write_text(path, "".join(kept))
