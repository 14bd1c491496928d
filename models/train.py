"""Train a network on a prepared set.

    python -m models.train slowonly_tiny --data data/NAME/VARIANT --out runs/first

Killed or stopped, the same command goes on; a finished run says so. OUT gets last.pth, best.pth, ckpt.pth, log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from datakit import console
from datakit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from datakit.manifest import Clip, Manifest

    from .training.recipe import Recipe
    from .zoo import Recognizer

log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__.partition("\n")[0])
    parser.add_argument("network", metavar="NAME", help="a network by name, for instance slowonly_tiny")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a prepared variant: data/NAME/VARIANT")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where checkpoints and log go")
    parser.add_argument("--recipe", help="a row of manifests/recipes.toml (default: the network's own)")
    parser.add_argument("--epochs", type=positive, help="instead of the recipe's")
    parser.add_argument("--batch", type=positive, help="clips a step; the recipe's rate is scaled to it")
    parser.add_argument("--lr", type=float, help="learning rate at this batch, instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="weights, order and crops follow from it (default 0)")
    parser.add_argument("--deterministic", action="store_true", help="only operations that give the same every time")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--workers", type=int, default=2, help="threads that read ahead (default 2)")
    parser.add_argument("--time-limit", type=float, metavar="MIN", help="stop after the epoch that ends before it")
    parser.add_argument("--cache-gb", type=float, default=2.0, help="memory for the frames of small sets (default 2)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    began = time.monotonic()

    import torch

    from datakit import manifest

    from . import zoo
    from .training import loop, recipe
    from .training.data import TrainingClips

    how = recipe.get(args.recipe or zoo.recipe_name(args.network), epochs=args.epochs, batch=args.batch, lr=args.lr)
    data = manifest.read(args.data)
    clips = usable(data.split("train"), args.data)
    device = torch.device(choose_device(args.device))
    torch.use_deterministic_algorithms(args.deterministic)
    torch.manual_seed(args.seed)
    net = zoo.create(args.network, num_classes=len(data.classes), classes=data.classes)
    log.info(
        "%s on %d clips, recipe %s: %d epochs, batch %d, learning rate %g (%g at a batch of %d)",
        *(args.network, len(clips), how.name, how.epochs, how.batch, how.scaled_lr, how.lr, how.lr_batch),
    )
    arguments = {
        "network": args.network,
        **json.loads(json.dumps(asdict(how))),
        "seed": args.seed,
        "deterministic": args.deterministic,
        "clips": data.list_id(clips),
        "media": data.media_id(clips),
    }
    frames = TrainingClips(clips, net.spec, how, seed=args.seed, cache_bytes=args.cache_gb * 1e9)
    steps = loop.train(
        net,
        frames,
        how,
        out=args.out,
        arguments=arguments,
        device=device,
        num_workers=args.workers,
        validate=validation(data, net, device),
        deadline=began + args.time_limit * 60 if args.time_limit else math.inf,
    )
    latest: list[loop.Step] = []

    def note() -> str:
        return f"epoch {latest[0].epoch + 1}, loss {latest[0].loss:.3f}, learning rate {latest[0].lr:.4g}"

    for step in console.progress(steps, total=how.epochs * frames.num_steps, what="train", note=note):
        latest[:] = [step]
    return report(args.out, how, new=bool(latest), as_json=args.json, seconds=time.monotonic() - began)


def usable(clips: Iterable[Clip], folder: Path) -> list[Clip]:
    """The clips that have a file and a label; how many have not is said."""
    listed = list(clips)
    chosen = [clip for clip in listed if clip.path is not None and clip.label_index >= 0]
    if not chosen:
        raise UsageError(f"{folder} has no clip to train on: {len(listed)} are listed, none has a file and a label")
    if len(chosen) < len(listed):
        log.info("%d of %d training clips have no file or no label", len(listed) - len(chosen), len(listed))
    return chosen


def choose_device(asked: str) -> str:
    import torch

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UsageError("no GPU that torch can use; type --device cpu")
    return "cuda" if asked != "cpu" and there else "cpu"


def validation(
    data: Manifest, net: Recognizer, device: torch.device
) -> Callable[[Recognizer], Mapping[str, float]] | None:
    """Top-1 on the val split, as the efficient mode of the network's protocol has it; clips not scored are wrong."""
    from evalkit import infer, protocols

    clips = [clip for clip in data.clips if clip.split == "val" and clip.label_index >= 0]
    if not clips:
        log.info("no val split: nothing is validated, best.pth will not be written")
        return None
    protocol = protocols.for_network(net.spec, "efficient")

    def validate(net: Recognizer) -> Mapping[str, float]:
        outcomes = list(infer.score(clips, net, protocol, device=device))
        scored = [outcome for outcome in outcomes if outcome.scores is not None]
        right = sum(
            int(outcome.scores.argmax()) == outcome.label_index for outcome in scored if outcome.scores is not None
        )
        return {"top1": right / len(clips), "scored": len(scored), "requested": len(clips)}

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
