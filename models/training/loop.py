"""The training loop: a CPU, a GPU, or a process each (torchrun); killed at any instant, it goes on from the last epoch.

OUT/last.pth    everything a run goes on from, replaced as a whole after each epoch; also a checkpoint of ours
OUT/best.pth    the weights with the best top-1 of the validations so far
OUT/ckpt.pth    the weights in the end
OUT/log.jsonl   a line a step (loss, learning rate) and a line an epoch (speed, waiting, unreadable clips, validation)
OUT/events/     the same for TensorBoard, where that is installed

Nothing random is carried from epoch to epoch: what an epoch draws follows from the seed, its number and the process.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import logging
import math
import os
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.parallel import DistributedDataParallel

from datakit import files
from datakit.errors import DataError, UsageError

from .. import checkpoints
from ..zoo import Recognizer
from . import finetune, multigrid
from .data import Batch, cross_entropy
from .multigrid import Grid
from .recipe import Recipe
from .schedule import learning_rate

log = logging.getLogger(__name__)
Validate = Callable[[Recognizer], Mapping[str, float]]
Number = Callable[[], float]
Precision = Literal["fp32", "bf16", "fp16"]
PATIENCE = timedelta(hours=6)  # of a process that is done with its part of a validation before the others
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Clips(typing.Protocol):
    """``data.TrainingClips`` is one."""

    def __len__(self) -> int: ...
    def batches(
        self, epoch: int, *, num_workers: int, grids: Sequence[Grid], rank: int, num_ranks: int
    ) -> Iterator[Batch]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the optimiser. ``loss``: mean over the clips of its batch, those of all processes; ``waited_s``: for
    the data."""

    epoch: int
    step: int
    loss: float
    lr: float
    clips: int
    waited_s: float = field(default=0.0, compare=False)


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
        """Pass on the batches; add up the time spent waiting for them."""
        asked = time.monotonic()
        for batch in batches:
            self.waiting_s += time.monotonic() - asked
            self.failed |= dict(batch.failed)
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
    """Where a run is. ``epochs`` and ``steps`` are behind it; ``metrics`` are those of the last validation."""

    epochs: int = 0
    steps: int = 0
    best_top1: float = -1.0
    best_epoch: int | None = None
    metrics: dict[str, float] | None = None


def train(
    net: Recognizer,
    clips: Clips,
    recipe: Recipe,
    *,
    out: Path,
    arguments: Mapping[str, Any],
    device: torch.device,
    num_workers: int = 0,
    validate: Validate | None = None,
    deadline: float = math.inf,
    precision: Precision = "fp32",
    accumulate: int = 1,
    compiled: bool = False,
    sync_bn: bool = False,
) -> Iterator[Step]:
    """Train ``net`` and yield every step, from where the run in ``out`` stands; a finished one yields nothing.

    ``arguments``: plain values that decide the result; a run begun with others is refused (``UsageError``).
    ``validate``: gets the network in evaluation mode, returns metrics, "top1" among them; called in every process, so
    that it can share the clips out. ``deadline``: by ``time.monotonic``; no epoch begins that would end after it if it
    took as long as the one before. ``accumulate``: parts that a process cuts its batch into, for want of memory.
    Under torchrun (a process group is there) every process takes its part of each batch, and all yield the same steps.
    Raises ``DataError`` when no clip of an epoch can be read or the loss is no longer a number.
    """
    rank, num_ranks = place()
    seed = torch.initial_seed()
    cycle = multigrid.cycle(recipe, net.spec)
    recipe = cycle.recipe
    prepare(net, device, sync_bn=sync_bn, split_bn=bool(cycle.phases))
    optimiser = torch.optim.SGD(
        finetune.parameter_groups(net.body, recipe),
        lr=recipe.scaled_lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    average = Average(net, recipe.ema_decay) if recipe.ema_decay else None
    state = resume(out, net, optimiser, scaler, average, arguments)
    stepper = Stepper(net, optimiser, scaler, recipe, device, precision, accumulate=accumulate, compiled=compiled)
    events = event_writer(out, state.steps) if rank == 0 else None
    for number in range(state.epochs, recipe.epochs):
        epoch = Epoch(epoch=number)
        grids = cycle.grids(number, len(clips))

        def batches(grids: Sequence[Grid] = grids, number: int = number) -> Iterator[Batch]:
            return clips.batches(number, num_workers=num_workers, grids=grids, rank=rank, num_ranks=num_ranks)

        torch.manual_seed(int(np.random.SeedSequence((seed, number, rank)).generate_state(1, np.uint64)[0]))
        finetune.train_mode(net)

        def steps(epoch: Epoch = epoch, num_steps: int = len(grids)) -> Iterator[tuple[float, int, float, Number]]:
            for done, batch in enumerate(epoch.waited(batches())):
                lr = learning_rate(recipe, epoch.epoch + done / num_steps, num_steps)
                num_clips, loss = stepper.step(batch, lr)
                if num_clips:
                    if average:
                        average.update(state.steps + done)
                    yield lr, num_clips, epoch.waiting_s, loss

        waited = 0.0
        for lr, num_clips, waiting_s, number_of_loss in one_behind(steps(), enabled=device.type == "cuda"):
            loss = number_of_loss()
            if not math.isfinite(loss):
                lower = f"--lr {recipe.scaled_lr / 3:.2g}"
                raise DataError(
                    f"{out}: the loss is {loss} in epoch {number + 1}; start anew with a lower rate: {lower}"
                )
            step = Step(
                epoch=number,
                step=state.steps + len(epoch.steps),
                loss=loss,
                lr=lr,
                clips=num_clips,
                waited_s=round(waiting_s - waited, 4),
            )
            waited = waiting_s
            epoch.steps.append(step)
            yield step
        if not epoch.steps:
            raise DataError(
                f"not one clip could be read; for instance {next(iter(epoch.failed.items()), 'none listed')}"
            )
        epoch.seconds = time.monotonic() - epoch.began
        state.epochs = number + 1
        state.steps += len(epoch.steps)
        shown = average.net if average else net
        last = state.epochs == recipe.epochs
        if last or (validate and state.epochs % recipe.validate_every == 0):
            if recipe.precise_bn_batches:
                both = zip(finetune.batch_norms(shown), finetune.batch_norms(net), strict=True)
                norms = [norm for norm, trained in both if trained.weight.requires_grad]
                precise_batch_norm(shown, norms, itertools.islice(batches(), recipe.precise_bn_batches), device)
            if validate:
                epoch.metrics = state.metrics = dict(validate(shown.eval()))
                if epoch.metrics["top1"] > state.best_top1:
                    state.best_top1, state.best_epoch = epoch.metrics["top1"], number
                    if rank == 0:
                        checkpoints.save(out / "best.pth", shown, epoch=number, metrics=epoch.metrics)
        if rank == 0:
            write_log(out, epoch, events)
            save_state(out, net, optimiser, scaler, average, state, arguments)
        late = time.monotonic() + (time.monotonic() - epoch.began) > deadline
        if not last and any_process(late):
            log.info("time is up after epoch %d of %d; the same command goes on", state.epochs, recipe.epochs)
            break
    if rank == 0:
        shown = average.net if average else net
        checkpoints.save(out / "ckpt.pth", shown, epoch=state.epochs - 1, metrics=state.metrics)


def prepare(net: Recognizer, device: torch.device, *, sync_bn: bool, split_bn: bool) -> None:
    """Move the network to the device and give it the batch norm that was asked for."""
    if sync_bn and device.type != "cuda":
        raise UsageError(
            "synchronised batch norm needs GPUs: torch has it for NCCL only, not for gloo on a CPU. "
            "Leave --sync-bn out, or keep the statistics as they are with --freeze-bn"
        )
    if sync_bn:
        net.body = nn.SyncBatchNorm.convert_sync_batchnorm(net.body)  # type: ignore[no-untyped-call]
    elif split_bn:
        multigrid.split_batch_norms(net)
    for key, parameter in net.named_parameters():
        if "aux_head" in key:  # TPN's: no forward uses it
            parameter.requires_grad_(False)
    net.to(device).to(memory_format=torch.channels_last_3d)
    finetune.train_mode(net)  # what it freezes must be frozen before the processes agree on what to exchange


class Stepper:
    """Forward, backward, one step of the optimiser; in mixed precision, in parts, with the other processes."""

    def __init__(
        self,
        net: Recognizer,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        recipe: Recipe,
        device: torch.device,
        precision: Precision,
        *,
        accumulate: int = 1,
        compiled: bool = False,
    ) -> None:
        self.net = net
        self.optimiser = optimiser
        self.scaler = scaler
        self.recipe = recipe
        self.device = device
        self.precision = precision
        self.accumulate = accumulate
        self.num_ranks = place()[1]
        self.parallel: DistributedDataParallel | None = None
        if self.num_ranks > 1:
            self.parallel = DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)
        self.forward: Callable[[Tensor], Tensor] = self.parallel or net
        if compiled:
            self.forward = torch.compile(self.forward)

    def step(self, batch: Batch, lr: float) -> tuple[int, Number]:
        """(clips of all processes in this batch, their mean loss before the step); nothing is done without clips.

        A process weighs its clips by how many all have, so that it does not matter how a batch is shared out.
        """
        num_clips = int(summed(torch.tensor(len(batch.labels))))
        if not num_clips:
            return 0, lambda: 0.0
        if not len(batch.labels):
            raise DataError(f"no clip of this process's part of a batch could be read: {dict(batch.failed)}")
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["lr_factor"]
        x_uint8, labels = moved(batch.x, self.device), moved(batch.labels, self.device)
        total = torch.zeros((), device=self.device)
        self.optimiser.zero_grad(set_to_none=True)
        # As many parts in each process: synchronised batch norm waits for all of them in each.
        num_parts = min(self.accumulate, smallest(len(batch.labels)))
        parts = list(zip(x_uint8.tensor_split(num_parts), labels.tensor_split(num_parts), strict=True))
        owns: Sequence[Tensor | None] = [None] * num_parts
        if batch.outputs is not None:
            owns = moved(batch.outputs, self.device).tensor_split(num_parts)
        for number, ((x, target), own) in enumerate(zip(parts, owns, strict=True), start=1):
            waits = self.parallel is not None and number < len(parts)
            with self.parallel.no_sync() if self.parallel and waits else nullcontext():
                logits = self.logits(x)
                loss = cross_entropy(logits, target, own, self.recipe.label_smoothing) / num_clips
                # the processes' gradients are averaged
                self.scaler.scale(loss * self.num_ranks).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.recipe.clip_grad_norm:
            self.scaler.unscale_(self.optimiser)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip_grad_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return num_clips, read_later(summed(total))

    def logits(self, x: Tensor) -> Tensor:
        """uint8 [N, C, T, H, W] -> float32 [N, classes]"""
        x = self.net.normalise(x.float()).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            return self.forward(x).float()


def one_behind(results: Iterator[Any], *, enabled: bool) -> Iterator[Any]:
    """Hand each result on after the next one has been asked for: a GPU has work while a loss is being read."""
    if not enabled:
        yield from results
        return
    waiting = next(results, None)
    while waiting is not None:
        following = next(results, None)
        yield waiting
        waiting = following


def read_later(x: Tensor) -> Number:
    """``x`` as a number when it is asked for, without waiting for what the GPU was given to do after it."""
    if not x.is_cuda:
        return x.item
    there = torch.empty((), dtype=x.dtype, pin_memory=True)
    there.copy_(x, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def number() -> float:
        copied.synchronize()
        return float(there)

    return number


def moved(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not x.is_cuda else x.to(device)


class Average:
    """A running average of the weights, ``decay`` of itself a step, less in the beginning; ``net`` holds it."""

    def __init__(self, net: Recognizer, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.decay = decay
        pairs = list(zip(self.net.state_dict().values(), net.state_dict().values(), strict=True))
        self.floats = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point()]
        self.counts = [(mine, theirs) for mine, theirs in pairs if not mine.is_floating_point()]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        keep = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_([mine for mine, _ in self.floats], [theirs for _, theirs in self.floats], 1 - keep)
        for mine, theirs in self.counts:
            mine.copy_(theirs)


@torch.no_grad()
def precise_batch_norm(
    net: Recognizer, norms: Sequence[BatchNorm], batches: Iterable[Batch], device: torch.device
) -> None:
    """Give the batch norms ``norms`` of ``net`` the mean and variance over the clips of ``batches``.

    Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3: E of the batches' means, and E of their
    variances plus the variance of their means.
    """
    net.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    sums = [torch.zeros(2, norm.num_features, dtype=torch.float64, device=device) for norm in norms]
    num_batches = 0
    for batch in batches:
        if not len(batch.labels):
            continue
        net(net.normalise(moved(batch.x, device).float()).contiguous(memory_format=torch.channels_last_3d))
        for norm, total in zip(norms, sums, strict=True):
            mean, variance = (getattr(norm, name).double() for name in ("running_mean", "running_var"))
            total += torch.stack((mean, variance + mean**2))
        num_batches += 1
    count = int(summed(torch.tensor(num_batches)))
    for norm, momentum, total in zip(norms, momenta, sums, strict=True):
        mean, square = summed(total) / count
        norm.load_state_dict({**norm.state_dict(), "running_mean": mean, "running_var": square - mean**2})
        norm.momentum = momentum
    net.eval()


# ---- the other processes ----


def join(device: torch.device) -> None:
    """Find the other processes that torchrun started: what is on GPUs goes over NCCL, what is not over gloo.

    Each restart gets keys of its own in torchrun's store: torch 2.15 gives it none, and a process that is quick to
    come back then dials the address that a killed one left there.
    """
    store, rank, num_ranks = next(rendezvous("env://"))
    store = PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=PATIENCE)


def place() -> tuple[int, int]:
    """(number of this process, how many there are)"""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def summed(x: Tensor) -> Tensor:
    """The sum over all processes, in place; of what is not on the GPU without waiting for it."""
    if place()[1] > 1:
        distributed.all_reduce(x)
    return x


def smallest(value: int) -> int:
    """The smallest of all processes' values."""
    if place()[1] == 1:
        return value
    x = torch.tensor(value)
    distributed.all_reduce(x, distributed.ReduceOp.MIN)
    return int(x)


def any_process(value: bool) -> bool:
    return bool(summed(torch.tensor(int(value))))


# ---- going on ----


def save_state(
    out: Path,
    net: Recognizer,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: Average | None,
    state: State,
    arguments: Mapping[str, Any],
) -> None:
    """Replace ``last.pth``. Data and random numbers need no state: they follow from the seed and the epoch."""
    training = {
        "state": asdict(state),
        "optimiser": optimiser.state_dict(),
        "scaler": scaler.state_dict(),
        "average": average.net.body.state_dict() if average else None,
        "arguments": dict(arguments),
    }
    checkpoints.save(out / "last.pth", net, training=training)


def resume(
    out: Path,
    net: Recognizer,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: Average | None,
    arguments: Mapping[str, Any],
) -> State:
    """Put everything where the run in ``out`` stands; a new run stays as it is."""
    first = place()[0] == 0
    if not (out / "last.pth").exists():
        if first:
            files.write_text(out / "log.jsonl", "")
        return State()
    saved = torch.load(out / "last.pth", weights_only=True, map_location="cpu")
    training = saved["training"]
    refuse_changes(out, training["arguments"], arguments)
    net.body.load_state_dict(saved["state_dict"])
    optimiser.load_state_dict(training["optimiser"])
    scaler.load_state_dict(training["scaler"])
    if average:
        average.net.body.load_state_dict(training["average"])
    state = State(**training["state"])
    if first:
        drop_later_lines(out / "log.jsonl", state.epochs)
    return state


def saved_state(out: Path) -> State:
    """Where the run in ``out`` stands."""
    if not (out / "last.pth").exists():
        return State()
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


def event_writer(out: Path, steps: int) -> Any:
    """TensorBoard's, where it is installed; what a killed run wrote beyond ``steps`` is hidden."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "events"), purge_step=steps)


def write_log(out: Path, epoch: Epoch, events: Any) -> None:
    lines = [asdict(step) for step in epoch.steps] + [epoch.line()]
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    if events is not None:
        for step in epoch.steps:
            events.add_scalar("loss", step.loss, step.step)
            events.add_scalar("learning rate", step.lr, step.step)
        for name, value in (epoch.metrics or {}).items():
            events.add_scalar(f"val {name}", value, epoch.steps[-1].step)
        events.flush()
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
