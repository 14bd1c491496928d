"""Write what a layer of a network says of each clip.

    python -m models.features ckpt.pth --data data/NAME/VARIANT --layer pool --out features.npz

The file (numpy.load, no pickle) holds ids [N]; features float32 [N, D], the mean over a clip's views; views float32
[N, V, D], crops outermost, then clips, NaN where a video has fewer; labels [N], -1 where unknown; and as JSON text
missing (id and reason of clips that could not be read) and meta (network, layer, protocol, views). The same command
gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datakit import console
from datakit.errors import EXIT_DONE, EXIT_SOME_FAILED, DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from datakit.manifest import Clip
    from evalkit.protocols import Protocol

    from .zoo import ModelSpec, Recognizer

log = logging.getLogger(__name__)
POOL = "pool"
SHOWN = 10


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m models.features", description="Write a feature a clip, and one a view, of a checkpoint."
    )
    top.add_argument("checkpoint", type=Path, metavar="CKPT", help="any checkpoint that models.load reads")
    top.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .npz to write")
    top.add_argument(
        "--layer", default=POOL, metavar="NAME",
        help="pool: what the classifier gets (default); or a module by name, such as res4: its mean over positions",
    )  # fmt: skip
    data = top.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="DIR", help="a prepared variant, such as data/k400/320p")
    data.add_argument("--split", default="val", help="split of a prepared set (default: val)")
    data.add_argument("--list", type=Path, metavar="FILE", help="somebody else's list, lines of 'path label'")
    data.add_argument("--root", type=Path, metavar="DIR", help="the folder that the paths of --list start from")
    data.add_argument("--limit", type=int, metavar="N", help="only the first N clips")
    how = top.add_argument_group("protocol and network")
    how.add_argument(
        "--mode", choices=("efficient", "accurate"), default="accurate", help="whose views (default: accurate)"
    )
    how.add_argument("--views", metavar="5x1@224", help="clips x crops @ crop side, in place of the protocol's")
    how.add_argument("--no-views", action="store_true", help="leave the features of the single views out of the file")
    how.add_argument("--name", metavar="MODEL", help="which network it is, for a file that does not say")
    how.add_argument("--trust-checkpoint", action="store_true", help="let a pickled checkpoint run its code")
    work = top.add_argument_group("work")
    work.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    work.add_argument("--workers", type=int, metavar="N", help="processes that decode, 0: none")
    work.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if bool(args.data) == bool(args.list):
        raise UsageError("of which clips? type --data data/NAME/VARIANT, or --list FILE --root DIR")
    if bool(args.list) != bool(args.root):
        raise UsageError("a list and the folder that its paths start from go together: type --list FILE --root DIR")

    import torch

    from evalkit import protocols

    from . import checkpoints

    net = checkpoints.load(args.checkpoint, name=args.name, trust=args.trust_checkpoint)
    protocol = protocols.for_network(net.spec, args.mode)
    if args.views:
        protocol = protocols.as_typed(protocol, args.views)
    clips = chosen_clips(args)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    found = extract(clips, net.to(device), protocol, layer=args.layer, device=device, workers=args.workers)
    write(args.out, found, net.spec, protocol, layer=args.layer, with_views=not args.no_views)
    return report(args, found)


def chosen_clips(args: argparse.Namespace) -> Sequence[Clip]:
    from datakit import manifest

    if args.list:
        clips: Sequence[Clip] = manifest.from_list(args.list, args.root).clips
    else:
        clips = manifest.read(args.data).split(args.split)
    return clips if args.limit is None else clips[: args.limit]


@dataclass(kw_only=True)
class Features:
    """``views``: of each clip float32 [V, D]; ``missing``: clips that could not be read, with the reason."""

    ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    views: list[NDArray[np.float32]] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)

    def means(self) -> NDArray[np.float32]:
        """[N, D], over the views of each clip, added up in double precision."""
        import numpy as np

        return np.stack([views.astype(np.float64).mean(axis=0).astype(np.float32) for views in self.views])


def extract(
    clips: Sequence[Clip],
    net: Recognizer,
    protocol: Protocol,
    *,
    layer: str = POOL,
    device: str | torch.device = "cpu",
    workers: int | None = None,
) -> Features:
    """What ``layer`` says of every view of every clip. Raises ``UsageError`` for a layer that there is not."""
    import numpy as np
    import torch

    from evalkit import infer

    found = Features()
    with tapped(net, layer) as tap:
        # Batches by video: a clip's features do not depend on the other clips.
        outcomes = infer.score(clips, tap, protocol, device=device, workers=workers, deterministic=True)
        shown = console.progress(
            outcomes,
            total=len(clips),
            what="features",
            note=lambda: f"({len(found.missing)} missing)" if found.missing else "",
        )
        with closing(outcomes):
            for outcome in shown:
                if outcome.scores is None:
                    found.missing.append({"id": outcome.id, "reason": outcome.reason or "unknown"})
                    continue
                # Views go through the network in the order of the clips.
                views = torch.cat(tap.taken)
                tap.taken = [views[outcome.num_views :]]
                found.ids.append(outcome.id)
                found.labels.append(outcome.label_index)
                found.views.append(np.asarray(views[: outcome.num_views].numpy()))
    if not found.ids:
        first = "; ".join(f"{each['id']}: {each['reason']}" for each in found.missing[:3])
        raise DataError(f"none of the {len(clips)} clips could be read ({first})")
    return found


class Tap:
    """A network as the engine knows it, which keeps what one layer says and hands out nothing."""

    def __init__(self, net: Recognizer) -> None:
        self._net = net
        self.spec = net.spec
        self.now: Tensor | None = None
        self.taken: list[Tensor] = []

    def normalise(self, x: Tensor) -> Tensor:
        return self._net.normalise(x)

    def __call__(self, x: Tensor) -> Tensor:
        self.now = None
        logits = self._net(x)
        if self.now is None:
            raise UsageError(
                f"{self.spec.name}: nothing goes through this layer; type --layer {POOL}, or one within it"
            )
        self.taken.append(pooled(self.now).float().cpu())
        return logits.new_zeros(len(x), 1)


def pooled(out: Tensor) -> Tensor:
    """[N, D, T, H, W] or [N, windows, D] -> the mean over positions, [N, D]."""
    if out.ndim == 5:
        return out.mean(dim=(2, 3, 4))
    return out.mean(dim=1) if out.ndim == 3 else out


@contextmanager
def tapped(net: Recognizer, layer: str) -> Iterator[Tap]:
    tap = Tap(net)

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tap.now = inputs[0]

    def keep_output(_: nn.Module, __: object, out: Tensor) -> None:
        tap.now = out

    if layer == POOL:
        handle = module_named(net, "head").register_forward_pre_hook(keep_input)
    else:
        handle = module_named(net, layer).register_forward_hook(keep_output)
    try:
        yield tap
    finally:
        handle.remove()


def module_named(net: Recognizer, layer: str) -> nn.Module:
    """The module of a name; of a stage the last block, through which all of it goes."""
    from torch import nn

    modules = dict(net.body.named_modules())
    if layer not in modules or layer == "":
        stages = [name for name, _ in net.body.named_children() if name.startswith(("stem", "res", "conv"))]
        raise UsageError(
            f"{net.spec.name} has no layer {layer!r}; type --layer with {', '.join([POOL, *stages, 'head'])}"
        )
    module: nn.Module = modules[layer]
    if isinstance(module, nn.Sequential):
        last = len(module) - 1
        module = modules.get(f"non_local.{layer}_{last}", module[last])
    return module


def write(out: Path, found: Features, spec: ModelSpec, protocol: Protocol, *, layer: str, with_views: bool) -> None:
    import numpy as np

    from datakit.files import replacing

    meta = {"network": spec.name, "weights": spec.weights, "layer": layer, "protocol": asdict(protocol)}
    arrays: dict[str, Any] = {
        "ids": np.array(found.ids, dtype=np.str_),
        "labels": np.array(found.labels, dtype=np.int64),
        "features": found.means(),
        "missing": np.array(json.dumps(found.missing)),
        "meta": np.array(json.dumps(meta)),
    }
    if with_views:
        most = max(len(views) for views in found.views)
        padded = [np.pad(each, ((0, most - len(each)), (0, 0)), constant_values=np.nan) for each in found.views]
        arrays["views"] = np.stack(padded)
    with replacing(out) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def report(args: argparse.Namespace, found: Features) -> int:
    shape = [len(found.ids), found.views[0].shape[1]]
    if args.json:
        table = {"out": str(args.out), "layer": args.layer, "shape": shape, "missing": found.missing}
        console.print_json("features", table)
    else:
        print(f"{shape[0]} clips, {shape[1]} numbers each: {args.out}")
        for each in found.missing[:SHOWN]:
            print(f"missing     {each['id']}: {each['reason']}")
        if len(found.missing) > SHOWN:
            print(f"missing     and {len(found.missing) - SHOWN} more, all in the file")
    return EXIT_SOME_FAILED if found.missing else EXIT_DONE


if __name__ == "__main__":
    console.run(main)
