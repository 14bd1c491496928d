"""What a network costs: multiply-adds, parameters, memory, speed, and what others measured of it.

    python -m models.cost slowonly_r50_4x16 --views 10x3@256

Multiply-adds are counted as fvcore counts them (a multiplication with its addition is one; a batch norm is two an
element; activations and pools are free): convolutions, linear layers, matrix products, batch norms.
"""

from __future__ import annotations

import argparse
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import manifests
from datakit import console
from datakit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evalkit.protocols import Protocol

    from .zoo import ModelSpec

NUM_CLASSES = 400
# A video to plan the views of: ten seconds, as those of Kinetics are.
VIDEO = {"num_frames": 300, "fps": 30.0, "height": 360, "width": 480}
TRAIN_CLIPS = 8
MEASURE_S = 10.0
FIGURES = {
    "gmacs": "{:.3f} G multiply-adds a view", "params_m": "{:.3f} M parameters", "latency_ms": "{:.1f} ms a view",
    "video_per_s": "{:.1f} video/s", "memory_mb": "{:.0f} MB in training", "train_s": "{:.2f} s an iteration",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a network costs under the views of one protocol.

    ``view``: shape of its input for one view [1, C, T, H, W]. ``num_views``: of one video.
    ``activations_bytes``: the most that lives at once in one view's pass, the input included, float32, without weights.
    ``train_bytes``: a step of training with ``TRAIN_CLIPS`` clips of the training crop: weights, gradients, momentum
    and what is kept for the way back, float32; counted, or measured on a GPU (``train_measured``).
    ``video_per_s``: all views of a video, the network only; None where nothing was run. ``device``: where it ran.
    """

    network: str
    views: str
    view: tuple[int, ...]
    num_views: int
    macs_per_view: int
    params: int
    activations_bytes: int
    train_bytes: int
    train_measured: bool
    video_per_s: float | None
    device: str | None

    @property
    def macs_per_video(self) -> int:
        return self.macs_per_view * self.num_views


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.cost", description=__doc__.partition("\n")[0])
    parser.add_argument("network", metavar="NAME", help="a network by name, or a checkpoint file")
    parser.add_argument("--views", metavar="10x3@256", help="clips x crops @ crop side (default: the accurate mode's)")
    parser.add_argument(
        "--device",
        default="auto",
        help="where speed is measured: auto, cpu, cuda, or none to count only (default: auto)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)

    from evalkit import protocols

    spec = spec_of(args.network)
    protocol = protocols.for_network(spec, "accurate")
    if args.views:
        protocol = protocols.as_typed(protocol, args.views)
    found = cost(spec, protocol, device=choose_device(args.device))
    beside = published(spec.name)
    if args.json:
        table = asdict(found) | {"macs_per_video": found.macs_per_video, "published": beside}
        console.print_json("cost", table)
    else:
        print(described(found, spec))
        print("\n".join(f"published     {line}" for line in map(in_words, beside)))
    return 0


def spec_of(name: str) -> ModelSpec:
    from . import checkpoints, zoo

    if Path(name).is_file():
        return checkpoints.load(name).spec
    return zoo.spec(name, num_classes=NUM_CLASSES)


def choose_device(asked: str) -> str | None:
    import torch

    if asked == "none":
        return None
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(asked).type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {asked}: no GPU that torch can use; type --device cpu")
    return asked


def cost(spec: ModelSpec, protocol: Protocol, *, device: str | None = None) -> Cost:
    """Count what one video costs under ``protocol``; with a ``device`` measure how many it does a second."""
    from evalkit import decode

    from . import zoo

    plan = decode.plan(**VIDEO, spec=spec, protocol=protocol)  # type: ignore[arg-type]
    num_frames = plan.frames.shape[1] // len(spec.frame_offsets)
    view = input_shape(spec, num_frames, protocol.crop_px)
    clip = input_shape(spec, spec.clip_len * (spec.num_segments or 1), spec.train_crop_px)
    body = zoo.hollow(spec)
    params = sum(parameter.numel() for parameter in body.parameters())
    kept = kept_bytes(body, (TRAIN_CLIPS, *clip[1:]))
    train_bytes, train_measured = 3 * 4 * params + kept, False
    video_per_s = None
    if device:
        video_per_s = measured_speed(spec, view, plan.num_views, device)
        measured = measured_training(spec, (TRAIN_CLIPS, *clip[1:]), device) if device.startswith("cuda") else None
        if measured is not None:
            train_bytes, train_measured = measured, True
    return Cost(
        network=spec.name,
        views=protocol.views,
        view=view,
        num_views=plan.num_views,
        macs_per_view=multiply_adds(body, view),
        params=params,
        activations_bytes=live_bytes(body, view),
        train_bytes=train_bytes,
        train_measured=train_measured,
        video_per_s=video_per_s,
        device=device_name(device),
    )


def input_shape(spec: ModelSpec, num_frames: int, crop_px: int) -> tuple[int, int, int, int, int]:
    """[1, C, T, H, W] of a view of ``num_frames`` pictures; stacks of flow pictures are channels of one frame."""
    channels = spec.network["in_channels"]
    stacked = channels // len(spec.mean)
    return (1, channels, num_frames // stacked, crop_px, crop_px)


# --- counting: on "meta" tensors, which have a shape and no numbers ---------------------------------------------------


def multiply_adds(body: nn.Module, shape: Sequence[int]) -> int:
    """Of one pass of ``body`` (weights on "meta") over an input of ``shape``."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    elements = 0

    def count(_: nn.Module, __: object, out: Tensor) -> None:
        nonlocal elements
        elements += out.numel()

    norms = [module for module in body.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    handles = [module.register_forward_hook(count) for module in norms]
    body.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body(torch.empty(*shape, device="meta"))
    for handle in handles:
        handle.remove()
    return int(counter.get_total_flops()) // 2 + 2 * elements


def live_bytes(body: nn.Module, shape: Sequence[int]) -> int:
    """The most bytes of tensors that live at once in a pass without gradients, weights left out."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    live = most = 0
    known = {parameter.untyped_storage()._cdata for parameter in (*body.parameters(), *body.buffers())}

    def gone(key: int, num_bytes: int) -> None:
        nonlocal live
        live -= num_bytes
        known.discard(key)

    def made(tensor: Tensor) -> None:
        nonlocal live, most
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            live += storage.nbytes()
            most = max(most, live)
            weakref.finalize(storage, gone, storage._cdata, storage.nbytes())

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    made(leaf)
            return out

    body.eval()
    with torch.no_grad(), Watch():  # type: ignore[no-untyped-call]
        body(torch.empty(*shape, device="meta"))
    return most


def kept_bytes(body: nn.Module, shape: Sequence[int]) -> int:
    """Bytes of the tensors that a pass in training keeps for the way back, weights left out."""
    import torch

    weights = {parameter.untyped_storage()._cdata for parameter in (*body.parameters(), *body.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            kept[key] = tensor
        return tensor

    body.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = body(torch.empty(*shape, device="meta"))
    num_bytes: int = 4 * logits.numel()
    return num_bytes + sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


# --- measuring --------------------------------------------------------------------------------------------------------


def measured_speed(spec: ModelSpec, view: Sequence[int], num_views: int, device: str) -> float:
    """Videos a second, the network only: on a GPU a video's views at once (as many as fit), on a CPU one by one."""
    import torch

    from . import zoo

    net = zoo.build(spec).eval().to(device)
    batch = num_views if device.startswith("cuda") else 1
    while True:
        try:
            return batch / num_views / timed(net, torch.randn(batch, *view[1:], device=device))
        except torch.OutOfMemoryError:
            if batch == 1:
                raise UsageError(f"{device} has not the memory for a view of {spec.name}; type --device none") from None
            batch //= 2


def timed(net: nn.Module, x: Tensor) -> float:
    """Seconds of a pass: the median of several after one that is not counted."""
    import torch

    from evalkit import infer

    def wait() -> None:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    seconds: list[float] = []
    began = time.perf_counter()
    with torch.inference_mode(), infer.cudnn_flags(deterministic=False):  # as evalkit runs it
        while len(seconds) < 2 or (len(seconds) < 12 and time.perf_counter() - began < MEASURE_S):
            wait()
            start = time.perf_counter()
            net(x)
            wait()
            seconds.append(time.perf_counter() - start)
    counted = sorted(seconds[1:])
    return counted[len(counted) // 2]


def measured_training(spec: ModelSpec, shape: Sequence[int], device: str) -> int | None:
    """Most bytes that torch holds on a GPU in a step of SGD with momentum; ``None`` where it has not as many."""
    import torch

    from . import zoo

    net = zoo.build(spec).train().to(device)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    x = torch.randn(*shape, device=device)
    try:
        for _ in range(2):  # the first step makes the momentum
            torch.cuda.reset_peak_memory_stats(device)
            optimiser.zero_grad()
            net(x).float().square().mean().backward()
            optimiser.step()
    except torch.OutOfMemoryError:
        return None
    return int(torch.cuda.max_memory_allocated(device))


def device_name(device: str | None) -> str | None:
    import torch

    if device is None or not device.startswith("cuda"):
        return device and f"{device}, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device)


# --- what is said -----------------------------------------------------------------------------------------------------


def published(network: str) -> list[dict[str, Any]]:
    """What others measured of a network: the figures of ``manifests/speeds.toml`` with their source and note."""
    return [
        figure | {"source": block["source"], "note": block["note"]}
        for block in manifests.read("speeds")["measured"]
        for figure in block["figures"]
        if figure["network"] == network
    ]


def in_words(row: dict[str, Any]) -> str:
    each = [text.format(row[key]) for key, text in FIGURES.items() if key in row]
    if "crop_px" in row:
        each[0] += f" at {row['crop_px']}"
    if "videos_per_gpu" in row:
        each.append(f"{row['videos_per_gpu']} videos a GPU")
    return f"{', '.join(each)} ({row['source']}: {row['note']})"


def described(found: Cost, spec: ModelSpec) -> str:
    shape = " x ".join(map(str, found.view[1:]))
    how = "measured" if found.train_measured else "counted from its tensors"
    lines = [
        ("network", f"{found.network}, {spec.num_classes} classes"),
        ("views", f"{found.views}: {found.num_views} of {shape}"),
        ("multiply-adds", f"{found.macs_per_view / 1e9:.3f} G a view, {found.macs_per_video / 1e9:.1f} G a video"),
        ("parameters", f"{found.params / 1e6:.3f} M"),
        ("activations", f"{found.activations_bytes / 1e6:.0f} MB at most in a view's pass, fp32, weights left out"),
        (
            "training step",
            f"{found.train_bytes / 1e6:.0f} MB for {TRAIN_CLIPS} clips of {spec.train_crop_px} px, fp32, {how}",
        ),
    ]
    if found.video_per_s is not None:
        lines.append(("speed", f"{found.video_per_s:.4g} video/s, the network only, on {found.device}"))
    return "\n".join(f"{what:13s} {text}" for what, text in lines)


if __name__ == "__main__":
    console.run(main)
