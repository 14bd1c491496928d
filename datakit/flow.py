"""Optical flow between consecutive frames, by several methods, and the bytes it is stored as.

A flow says for each pixel of a frame where it is in the next one, in pixels of the stored size: x to the right, y down.
N frames have N - 1 flows; flow i belongs to frame i. Stored is one byte a component:

    cvRound(255 * (v + 20) / 40), clipped to 0..255        -20 px -> 0     0 px -> 128     20 px -> 255

as denseflow does it (src/common.cpp:4-15, bound 20); no motion is 128 because cvRound(127.5) goes to the even number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises of a file that is none; nothing is unpickled
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import manifests

from . import catalog
from .encode import sha256_file
from .errors import BadManifest, CheckpointError, Retryable, ToolMissing, UsageError

if TYPE_CHECKING:
    import torch

METHODS = ("tvl1", "dis", "raft")
NAMES = {"denseflow": "flow_{}_{:05}.jpg", "mmaction2": "{}_{:05}.jpg"}
CONTAINERS = ("frames", "mp4")
# One pair at a time stays in a processor's cache. A GPU wants many, for an iteration is done sooner than started; TV-L1
# takes at most 343 bytes a pixel, 2.7 GB, and several workers share a GPU.
PIXELS_AT_ONCE = {"cpu": 1, "cuda": 8_000_000}
# RAFT compares each eighth pixel of a row and column with all others: 11 bytes each while they are made, 1.1 GB.
RAFT_COMPARISONS_AT_ONCE = 100_000_000
RAFT_SMALLEST_SIDE_PX = 128
# BT.601 luma in 15 bits, as cv2.cvtColor rounds it: equal to the bit.
_LUMA, _LUMA_BITS = (9798, 19235, 3735), 15

Frames = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]
Estimate = Callable[[Frames], Flow]  # uint8 [n + 1, H, W, 3] -> float32 [n, H, W, 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowVariant:
    """The flow of one RGB variant of a set, by one method. Everything that can change a byte is in ``definition``."""

    base: str
    base_hash: str
    method: str
    params: str
    container: str
    names: str
    weights: str = ""

    def __post_init__(self) -> None:
        for value, known, option in (
            (self.method, METHODS, "--method"),
            (self.container, CONTAINERS, "--container"),
            (self.names, NAMES, "--names"),
            (self.params, parameter_sets(self.method), f"--method {self.method} --params"),
        ):
            if value not in known:
                raise UsageError(f"{value!r} is not known here; type {option} with one of: {', '.join(known)}")
        if bool(self.weights) != (self.method == "raft"):
            raise UsageError("RAFT needs its weights, and it alone; type --method raft --weights FILE")

    @property
    def name(self) -> str:
        """Its folder: beside that of the RGB variant."""
        return f"{self.base.removesuffix('-frames')}-flow"

    def definition(self) -> dict[str, Any]:
        """As it is hashed and as the lock has it."""
        facts = manifests.read("flow")
        storage = facts["storage"]
        fields = {"frames": ["quality"], "mp4": ["codec", "crf", "preset", "gop_frames"]}[self.container]
        return {
            "flow_of": self.base,
            "flow_of_hash": self.base_hash,
            "version": facts["version"],
            "method": self.method,
            "params": self.params,
            "parameters": facts[self.method][self.params],
            "weights": self.weights,
            "container": self.container,
            "names": self.names if self.container == "frames" else "",
            **{field: storage[field] for field in ["bound_px", *fields]},
        }

    @property
    def hash(self) -> str:
        return catalog.digest(self.definition())


def parameter_sets(method: str) -> list[str]:
    """The named parameters of a method, the default first."""
    return list(manifests.read("flow")[method])


def quantised(flow: npt.NDArray[np.floating[Any]], bound_px: float) -> Frames:
    """Flow in pixels as bytes, any shape."""
    scaled = 255 * (flow.astype(np.float64) + bound_px) / (2 * bound_px)
    return np.asarray(np.rint(scaled).clip(0, 255), np.uint8)  # rint: halves to the even number, as cvRound


def pixels(stored: Frames, bound_px: float) -> Flow:
    """Stored bytes as pixels: no motion, 128, is 0.08 px here for a bound of 20, as it is for every reader of them."""
    return (stored.astype(np.float32) / 255 * (2 * bound_px) - bound_px).astype(np.float32)


def grey(frames: Frames) -> Frames:
    """Luma of RGB [..., 3], equal to cv2.cvtColor with COLOR_RGB2GRAY."""
    luma = sum(frames[..., channel].astype(np.int32) * weight for channel, weight in enumerate(_LUMA))
    return np.asarray((luma + (1 << (_LUMA_BITS - 1))) >> _LUMA_BITS, np.uint8)


def estimator(method: str, params: str, device: str, weights: Path | None = None) -> Estimate:
    """The function that computes flow. Raises ``ToolMissing``, ``CheckpointError``, ``UsageError``."""
    settings = manifests.read("flow")[method][params]
    if method == "tvl1":
        return _tvl1(settings, device)
    if method == "dis":
        return _dis(settings)
    assert weights is not None
    return _raft(params, settings["iterations"], device, weights)


def encoder_name(method: str, params: str) -> str:
    """Who computed it, as the manifest records it."""
    if method == "dis":
        return f"dis {params}, OpenCV {_opencv().__version__}"
    import torch

    return f"{method} {params}, torch {torch.__version__}"


def check_device(method: str, device: str) -> None:
    """Raises ``UsageError`` where the method cannot run on the device."""
    if device == "cpu":
        return
    if method == "dis":
        raise UsageError("DIS runs on the processor; type --device cpu")
    import torch

    if not torch.cuda.is_available():
        raise UsageError("torch sees no GPU here; type --device cpu")


def _tvl1(settings: dict[str, Any], device: str) -> Estimate:
    import torch

    from . import tvl1

    try:
        how = tvl1.Parameters(**settings)
    except TypeError as error:
        raise BadManifest(f"flow.toml: {error}") from None

    def some(frames: Frames) -> torch.Tensor:
        pictures = torch.from_numpy(grey(frames)).to(device)
        return tvl1.flow(pictures[:-1], pictures[1:], how)

    return lambda frames: _in_parts(frames, _pairs_at_once(frames, device), some)


def _dis(preset: int) -> Estimate:
    cv2 = _opencv()
    cv2.setNumThreads(1)  # clips run side by side
    dis = cv2.DISOpticalFlow_create(preset)

    def estimate(frames: Frames) -> Flow:
        pictures = grey(frames)
        flows = [dis.calc(one, other, None) for one, other in itertools.pairwise(pictures)]
        return np.asarray(flows, np.float32)

    return estimate


def _raft(kind: str, num_iterations: int, device: str, weights: Path) -> Estimate:
    """torchvision's RAFT. Pictures are padded to multiples of 8 by repeating their border, as its transforms ask."""
    import torch
    import torch.nn.functional as F
    from torchvision.models.optical_flow import raft_large, raft_small

    network = {"large": raft_large, "small": raft_small}[kind](weights=None, progress=False).eval()
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError, TypeError, AttributeError, ValueError, UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{weights} holds no weights of torchvision's raft_{kind}: {first}") from None
    network.to(device)

    def some(frames: Frames) -> torch.Tensor:
        height, width = frames.shape[1:3]
        right, below = (max(RAFT_SMALLEST_SIDE_PX, -(-side // 8) * 8) - side for side in (width, height))
        pictures = torch.from_numpy(frames).to(device)
        x = F.pad(pictures.permute(0, 3, 1, 2) / 127.5 - 1, (0, right, 0, below), mode="replicate")
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found: torch.Tensor = network(x[:-1].contiguous(), x[1:].contiguous(), num_flow_updates=num_iterations)[-1]
        return found[:, :, :height, :width]

    def estimate(frames: Frames) -> Flow:
        compared = (frames.shape[1] * frames.shape[2] // 64) ** 2
        most = max(1, RAFT_COMPARISONS_AT_ONCE // max(1, compared))
        return _in_parts(frames, min(most, _pairs_at_once(frames, device)), some)

    return estimate


def _pairs_at_once(frames: Frames, device: str) -> int:
    height, width = frames.shape[1:3]
    return max(1, int(PIXELS_AT_ONCE[device] // (height * width)))


def _in_parts(frames: Frames, size: int, some: Callable[[Frames], torch.Tensor]) -> Flow:
    """``some`` gives the flow of a few frames as [B, 2, H, W]: here of all, ``size`` pairs at once.

    Fewer where a GPU has no memory left for as many. Raises ``Retryable`` when it has none for one.
    """
    import torch

    found: list[Flow] = []
    start = 0
    while start < len(frames) - 1:
        full = False
        try:
            with torch.inference_mode():
                part = some(frames[start : start + size + 1])
                found.append(part.permute(0, 2, 3, 1).contiguous().cpu().numpy())
        except torch.OutOfMemoryError:
            full = True  # what the failed attempt holds is free when its exception is gone
        if not full:
            start += size
            continue
        if size == 1:
            height, width = frames.shape[1:3]
            raise Retryable(f"the GPU has no memory left for two frames of {width}x{height}; type a smaller --jobs")
        torch.cuda.empty_cache()
        size //= 2
    return np.concatenate(found)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ToolMissing("DIS needs OpenCV; type: pip install opencv-python-headless, or --method tvl1") from error
    return cv2


def weights_id(weights: Path) -> str:
    """First eight hex digits of the sha256 of a weights file. Raises ``UsageError`` when there is none."""
    if not weights.is_file():
        raise UsageError(f"{weights} is not there; type --weights with the file of torchvision's RAFT")
    return sha256_file(weights)[:8]
