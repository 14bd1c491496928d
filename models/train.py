"""Train a network on a prepared set.

    python -m models.train slowonly_tiny --data data/NAME/VARIANT --out runs/first
    python -m models.train slowonly_tiny --data data/OTHER/VARIANT --out runs/second --weights runs/first/ckpt.pth
    python -m models.train slowonly_tiny --data data/NAME/VARIANT --data data/WEB/VARIANT:0.5 --out runs/both
    torchrun --nproc-per-node 8 -m models.train slowonly_r50_4x16 --data data/NAME/VARIANT --out runs/third --dtype bf16

Killed or stopped, the same command goes on; a finished run says so. OUT gets last.pth, best.pth, ckpt.pth, log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from datakit import console, files
from datakit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from datakit.manifest import Clip, Manifest

    from .training.data import Source
    from .training.loop import Step
    from .training.recipe import Recipe
    from .zoo import Recognizer

log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__.partition("\n")[0])
    parser.add_argument("network", metavar="NAME", help="a network by name, for instance slowonly_tiny")
    parser.add_argument(
        "--data", type=data_set, action="append", required=True, metavar="DIR[:RATIO]",
        help="a prepared variant: data/NAME/VARIANT; again for another set, with a head of its own that is dropped in "
        "the end, of which RATIO clips are taken for each of the first set's",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where checkpoints and log go")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    how = parser.add_argument_group("recipe")
    how.add_argument("--recipe", help="a row of manifests/recipes.toml (default: the network's own)")
    how.add_argument("--epochs", type=positive, help="instead of the recipe's")
    how.add_argument("--batch", type=positive, help="clips a step and process; the recipe's rate is scaled to it")
    how.add_argument("--lr", type=float, help="learning rate at this batch (of all processes), instead of the recipe's")
    how.add_argument("--clip-grad", type=float, metavar="NORM", help="scale gradients down to this norm; 0: never")
    how.add_argument("--ema", type=float, metavar="DECAY", help="validate and keep a running average, such as 0.999")
    how.add_argument(
        "--precise-bn", type=int, metavar="N", help="batch norm's statistics over N batches, before validation"
    )
    how.add_argument("--augment", action="append", default=[], metavar="NAME", help="of augments.toml (repeatable)")
    how.add_argument("--multigrid", choices=("none", "short", "long", "both"), help="many small clips first")
    how.add_argument("--validate-every", type=positive, metavar="EPOCHS")
    how.add_argument("--seed", type=int, default=0, help="weights, order and crops follow from it (default 0)")
    start = parser.add_argument_group("finetune")
    start.add_argument("--weights", type=Path, metavar="FILE", help="start from these, with a new head")
    start.add_argument("--name", metavar="MODEL", help="which network --weights is, for a file that does not say")
    start.add_argument("--trust-checkpoint", action="store_true", help="let a pickled --weights run its code")
    start.add_argument(
        "--freeze",
        type=stages,
        metavar="STAGES",
        help="0: the stem stays as it is, 1: res2 too, ...; all: all but the head",
    )
    start.add_argument("--freeze-bn", action="store_true", help="batch norms stay as they are")
    work = parser.add_argument_group("machine")
    work.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    work.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the network's arithmetic")
    work.add_argument("--compile", action="store_true", help="run the network through torch.compile")
    work.add_argument("--accumulate", type=positive, default=1, metavar="N", help="cut each batch into N parts")
    work.add_argument("--sync-bn", action="store_true", help="batch norm over the batches of all processes (GPUs only)")
    work.add_argument("--deterministic", action="store_true", help="only operations that give the same every time")
    work.add_argument(
        "--workers", type=int, help="threads that read ahead (default 2; for a GPU its share of the cores)"
    )
    work.add_argument("--time-limit", type=float, metavar="MIN", help="stop after the epoch that ends before it")
    work.add_argument("--cache-gb", type=float, default=2.0, help="memory for the frames of small sets (default 2)")
    return parser


def data_set(text: str) -> tuple[Path, float]:
    """``DIR`` or ``DIR:RATIO``."""
    folder, _, ratio = text.rpartition(":")
    try:
        return (Path(folder), float(ratio)) if folder else (Path(text), 1.0)
    except ValueError:  # a folder with a colon in its name
        return Path(text), 1.0


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def stages(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError("0, 1, 2, ... or all")
    return text if text == "all" else int(text)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    began = time.monotonic()

    import torch

    from datakit import manifest

    from . import checkpoints, zoo
    from .training import augment, finetune, heads, loop, multigrid, recipe
    from .training.data import TrainingClips

    with processes(args.device) as (rank, num_ranks, device):
        args.network = network_for(args.network, args.data[0][0])
        how = recipe.get(
            args.recipe or zoo.recipe_name(args.network),
            processes=num_ranks,
            epochs=args.epochs,
            batch=args.batch,
            lr=args.lr,
            clip_grad_norm=args.clip_grad,
            ema_decay=args.ema,
            precise_bn_batches=args.precise_bn,
            multigrid=args.multigrid,
            validate_every=args.validate_every,
            **augment.named(args.augment),
        )
        folder, more = args.data[0][0], args.data[1:]
        data, others = manifest.read(folder), [manifest.read(path) for path, _ in more]
        clips = usable(data.split("train"), folder)
        be_repeatable(device, wanted=args.deterministic)
        torch.manual_seed(args.seed)
        classes = heads.class_names(data, others)
        net = zoo.create(args.network, num_classes=len(classes), classes=classes)
        if args.weights:
            finetune.start_from(net, args.weights, name=args.name, trust=args.trust_checkpoint)
        finetune.freeze(net, stages=args.freeze, batch_norm=args.freeze_bn)
        cycle = multigrid.cycle(how, net.spec)
        arguments = {
            "network": args.network,
            **json.loads(json.dumps(asdict(how))),
            "seed": args.seed,
            "deterministic": args.deterministic,
            "processes": num_ranks,
            "dtype": args.dtype,
            "accumulate": args.accumulate,
            "weights": checkpoints.sha8(args.weights) if args.weights else "",
            "freeze": args.freeze,
            "freeze_bn": args.freeze_bn,
            "sync_bn": args.sync_bn,
            "clips": data.list_id(clips),
            "media": data.media_id(clips),
            "others": [
                [other.list_id(other.clips), other.media_id(other.clips), ratio]
                for other, (_, ratio) in zip(others, more, strict=True)
            ],
        }
        frames = TrainingClips(
            clips,
            net.spec,
            how,
            seed=args.seed,
            cache_bytes=args.cache_gb * 1e9 / num_ranks,
            flip_labels=flip_labels(data),
            others=[source(other, *asked) for other, asked in zip(others, more, strict=True)],
        )
        cores = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        workers = args.workers if args.workers is not None else 2 if device.type == "cpu" else cores
        done = loop.saved_state(args.out)
        steps = loop.train(
            net,
            frames,
            how,
            out=args.out,
            arguments=arguments,
            device=device,
            num_workers=workers,
            validate=validation(data, net, device, cores=cores, repeatable=args.deterministic),
            deadline=began + args.time_limit * 60 if args.time_limit else math.inf,
            precision=args.dtype,
            accumulate=args.accumulate,
            compiled=args.compile,
            sync_bn=args.sync_bn,
        )
        if rank:  # the first one speaks for all
            deque(steps, maxlen=0)
            return 0
        say(args.network, how, cycle.recipe, num_ranks, len(clips))
        left = sum(cycle.num_steps(epoch, len(frames)) for epoch in range(done.epochs, cycle.recipe.epochs))
        speed = Speed()
        took = False
        for step in console.progress(steps, total=left, what="train", note=speed.note):
            speed.took(step)
            took = True
        made = {**arguments, "gpus": num_ranks if device.type == "cuda" else 0}  # for python -m evalkit table
        files.write_text(args.out / "training.json", json.dumps(made, indent=1) + "\n")
        for name in ("ckpt.pth", "best.pth") if others else ():
            heads.keep_first(args.out / name, len(data.classes))
        return report(args.out, cycle.recipe, new=took, as_json=args.json, seconds=time.monotonic() - began)


def network_for(asked: str, folder: Path) -> str:
    """``asked``, or on optical flow the network that is called like it but for "_flow".

    Raises ``UsageError`` where there is none, and for a network of flow on frames.
    """
    from datakit import manifest

    from . import zoo

    flow = manifest.is_flow(folder)
    if flow == (zoo.row_of(asked)["input"] == "flow"):
        return asked
    if not flow:
        if (folder / "manifest.lock").is_file():
            make = f"python -m datakit flow NAME --variant {folder.name}"
            raise UsageError(f"{folder} holds frames, {asked} looks at optical flow; type: {make}")
        return asked
    networks = zoo.names("*_flow*")
    for name in networks:
        if name.replace("_flow", "", 1) == asked:
            log.info("%s holds optical flow: the network is %s", folder, name)
            return name
    raise UsageError(f"{folder} holds optical flow, {asked} looks at frames; networks of flow: {', '.join(networks)}")


@contextmanager
def processes(asked: str) -> Iterator[tuple[int, int, torch.device]]:
    """(number of this process, how many there are, its device). Under torchrun they find each other first."""
    import torch
    from torch import distributed

    from .training import loop

    kind = choose_device(asked)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield 0, 1, torch.device(kind)
        return
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", local)
    if device.type == "cuda":
        if local >= (count := torch.cuda.device_count()):
            raise UsageError(f"there are {count} GPUs for more processes; type torchrun --nproc-per-node {count}")
        torch.cuda.set_device(device)
    loop.join(device)
    try:
        if distributed.get_rank():
            logging.getLogger().setLevel(logging.WARNING)
        yield distributed.get_rank(), distributed.get_world_size(), device
    finally:
        distributed.destroy_process_group()


def be_repeatable(device: torch.device, *, wanted: bool) -> None:
    """On a GPU a few backward passes (max pooling in 3D) have no repeatable form; torch warns where it meets one."""
    import torch

    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted, warn_only=device.type == "cuda")
    torch.backends.cudnn.benchmark = not wanted
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, in training as in tests
    if device.type == "cuda":
        torch.set_num_threads(1)  # the threads that read would each start as many as there are cores


def say(network: str, how: Recipe, stretched: Recipe, num_ranks: int, num_clips: int) -> None:
    """What will be done, and what the recipe is known to reach."""
    from .training import recipe

    log.info(
        "%s on %d clips, recipe %s: %d epochs, %d process%s x batch %d = %d, learning rate %g (%g at a batch of %d)",
        *(network, num_clips, how.name, stretched.epochs, num_ranks, "es" if num_ranks > 1 else ""),
        *(how.batch // num_ranks, how.batch, how.scaled_lr, how.lr, how.lr_batch),
    )
    row = recipe.rows()[how.name]
    if "weights" in row:
        log.info("the recipe starts from %s weights (--weights FILE)", row["weights"])
    for result in row.get("published", ()):
        if result["network"] == network:
            log.info("published with it: top-1 %s on %s (%s)", result["top1"], result["set"], row["source"])


class Speed:
    """Clips a second and the share of time spent waiting for data, over the last ten steps or so."""

    def __init__(self) -> None:
        self.last: Step | None = None
        self.at = time.monotonic()
        self.clips_per_s = self.waiting = 0.0

    def took(self, step: Step) -> None:
        now = time.monotonic()
        seconds = max(now - self.at, 1e-6)
        new = 1.0 if self.last is None else 0.1
        self.clips_per_s += new * (step.clips / seconds - self.clips_per_s)
        self.waiting += new * (min(step.waited_s / seconds, 1.0) - self.waiting)
        self.last, self.at = step, now

    def note(self) -> str:
        if self.last is None:
            return ""
        return (
            f"epoch {self.last.epoch + 1}, loss {self.last.loss:.3f}, learning rate {self.last.lr:.4g}, "
            f"{self.clips_per_s:.1f} clips/s, {self.waiting:.0%} waiting for data"
        )


def usable(clips: Iterable[Clip], folder: Path) -> list[Clip]:
    """The clips that have a file and a label; how many have not is said."""
    listed = list(clips)
    chosen = [clip for clip in listed if clip.path is not None and clip.label_index >= 0]
    if not chosen:
        raise UsageError(f"{folder} has no clip to train on: {len(listed)} are listed, none has a file and a label")
    if len(chosen) < len(listed):
        log.info("%d of %d training clips have no file or no label", len(listed) - len(chosen), len(listed))
    return chosen


def source(data: Manifest, folder: Path, ratio: float) -> Source:
    """Another data set to train on beside the first."""
    from .training.data import Source

    if ratio <= 0:
        raise UsageError(f"--data {folder}:{ratio:g}: type a ratio above 0")
    clips = usable(data.split("train"), folder)
    return Source(clips=clips, num_classes=len(data.classes), ratio=ratio, flip_labels=flip_labels(data))


def flip_labels(data: Manifest) -> dict[int, int]:
    """Label -> label of the mirrored clip, as the data set's manifest says."""
    from datakit import catalog

    from .training import data as clips

    known = catalog.dataset(data.name)
    return clips.flip_labels(known.flip_labels if known else (), data.classes)


def choose_device(asked: str) -> str:
    import torch

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UsageError("no GPU that torch can use; type --device cpu")
    return "cuda" if asked != "cpu" and there else "cpu"


def validation(
    data: Manifest, net: Recognizer, device: torch.device, *, cores: int, repeatable: bool
) -> Callable[[Recognizer], Mapping[str, float]] | None:
    """Top-1 on the val split, as the efficient mode of the network's protocol has it; clips not scored are wrong.

    Each process scores its part of the clips; all get the same numbers.
    """
    import torch

    from evalkit import infer, protocols

    from .training.loop import place, summed

    clips = [clip for clip in data.clips if clip.split == "val" and clip.label_index >= 0]
    if not clips:
        log.info("no val split: nothing is validated, best.pth will not be written")
        return None
    protocol = protocols.for_network(net.spec, "efficient")
    workers = None if device.type == "cpu" else cores
    repeatable = repeatable and device.type != "cpu"  # a CPU's sums are, batch by batch
    rank, num_ranks = place()

    def validate(net: Recognizer) -> Mapping[str, float]:
        mine = clips[rank::num_ranks]
        outcomes = list(infer.score(mine, net, protocol, device=device, workers=workers, deterministic=repeatable))
        scored = [(outcome.scores, outcome.label_index) for outcome in outcomes if outcome.scores is not None]
        num_classes = len(data.classes)  # what other data sets have comes after these
        right = sum(int(scores[:num_classes].argmax()) == label for scores, label in scored)
        all_right, all_scored = summed(torch.tensor([right, len(scored)])).tolist()
        return {"top1": all_right / len(clips), "scored": all_scored, "requested": len(clips)}

    return validate


def report(out: Path, how: Recipe, *, new: bool, as_json: bool, seconds: float) -> int:
    """Say where the run stands, from its own files."""
    from .training import loop

    state = loop.saved_state(out)
    done = state.epochs == how.epochs
    result = {
        "out": str(out),
        "checkpoint": str(out / "ckpt.pth"),
        "finished": done,
        "epochs": state.epochs,
        "of_epochs": how.epochs,
        "val": state.metrics,
        "best_top1": state.best_top1 if state.best_epoch is not None else None,
        "best_epoch": state.best_epoch,
        "seconds": round(seconds, 1),
    }
    if as_json:
        console.print_json("train", result)
        return 0
    if done and not new:
        print(f"{out} was finished before: {how.epochs} epochs. Another --out trains anew.")
    else:
        print(f"{state.epochs} of {how.epochs} epochs in {console.duration(seconds)}: {out / 'ckpt.pth'}")
    if state.metrics:
        top1, num_clips = 100 * state.metrics["top1"], state.metrics["requested"]
        print(f"top-1 {top1:.2f} on {num_clips:.0f} val clips (one clip, centre crop)")
    return 0


if __name__ == "__main__":
    console.run(main)
