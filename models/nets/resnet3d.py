"""3D residual networks: SlowOnly, I3D, C2D, TSN, TSM, and the trunk of SlowFast and TPN.

Shapes: N clips, C channels, T frames, H x W pixels; every tensor is [N, C, T, H, W] unless a name says otherwise.

    stem   conv1_kernel, 64, stride (conv1_stride_t, 2, 2);  max pool 1x3x3, stride (pool1_stride_t, 2, 2)
    res2   [ Tx1x1, 64   1x3x3, 64   1x1x1, 256  ] x 3        T = 3 where ``inflate`` is 1, else 1
    pool2  max pool 2x1x1 over time, in I3D and C2D
    res3   [ Tx1x1, 128  1x3x3, 128  1x1x1, 512  ] x 4        the 3x3 of a stage's first block has the spatial stride
    res4   [ Tx1x1, 256  1x3x3, 256  1x1x1, 1024 ] x 6
    res5   [ Tx1x1, 512  1x3x3, 512  1x1x1, 2048 ] x 3
    mean over T, H, W;  dropout;  linear

A network that looks at each frame alone (TSN) is one whose kernels all have T = 1: its mean over frames is the
consensus of the segments, and since the classifier is linear it does not matter which of the two comes first.

Sources: Feichtenhofer et al., "SlowFast Networks for Video Recognition" (2019), table 1; Carreira and Zisserman, "Quo
Vadis, Action Recognition?" (2017); Lin et al., "TSM: Temporal Shift Module" (2019); mmaction2
mmaction/models/backbones/resnet3d.py (where the spatial stride sits), resnet_tsm.py (which blocks shift), c2d.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from .nonlocal_block import NonLocal

Triple = tuple[int, int, int]
PerBlock = Sequence[int | Sequence[int]]


class ConvBN(nn.Module):
    """Convolution without bias, padded to keep the size at stride 1, then batch norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        stride: Triple = (1, 1, 1),
        *,
        groups: int = 1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        t, h, w = kernel
        padding = (t // 2, h // 2, w // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, (t, h, w), stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm3d(out_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out


def shifted(x: Tensor, shift_div: int) -> Tensor:
    """The first 1 / shift_div of the channels see the next frame, as many more the previous one; zeros beyond.

    mmaction2 mmaction/models/backbones/resnet_tsm.py:76.
    """
    fold = x.shape[1] // shift_div
    from_next = pad(x[:, :fold, 1:], (0, 0, 0, 0, 0, 1))
    from_previous = pad(x[:, fold : 2 * fold, :-1], (0, 0, 0, 0, 1, 0))
    return torch.cat((from_next, from_previous, x[:, 2 * fold :]), dim=1)


class Bottleneck(nn.Module):
    """1x1 (3x1x1 when ``inflated``), 3x3 with the spatial stride, 1x1 to four times the width, around a shortcut.

    With ``shift_div`` the first convolution sees channels of the neighbouring frames (TSM), with ``shift_shortcut`` the
    shortcut sees them too.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        spatial_stride: int,
        inflated: bool,
        shift_div: int | None = None,
        shift_shortcut: bool = False,
    ) -> None:
        super().__init__()
        stride = (1, spatial_stride, spatial_stride)
        out_channels = width * self.expansion
        self.shift_div = shift_div
        self.shift_shortcut = shift_shortcut
        self.conv1 = ConvBN(in_channels, width, (3 if inflated else 1, 1, 1))
        self.conv2 = ConvBN(width, width, (1, 3, 3), stride)
        self.conv3 = ConvBN(width, out_channels, (1, 1, 1))
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or spatial_stride != 1:
            self.shortcut = ConvBN(in_channels, out_channels, (1, 1, 1), stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        seen = shifted(x, self.shift_div) if self.shift_div else x
        residual = self.relu(self.conv2(self.relu(self.conv1(seen))))
        out: Tensor = self.relu(self.conv3(residual) + self.shortcut(seen if self.shift_shortcut else x))
        return out


class BasicBlock(nn.Module):
    """Two 3x3 (3x3x3 when ``inflated``), the first with the spatial stride, around a shortcut."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        spatial_stride: int,
        inflated: bool,
        shift_div: int | None = None,
        shift_shortcut: bool = False,
    ) -> None:
        super().__init__()
        stride = (1, spatial_stride, spatial_stride)
        kernel = (3 if inflated else 1, 3, 3)
        self.shift_div = shift_div
        self.shift_shortcut = shift_shortcut
        self.conv1 = ConvBN(in_channels, width, kernel, stride)
        self.conv2 = ConvBN(width, width, kernel)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != width or spatial_stride != 1:
            self.shortcut = ConvBN(in_channels, width, (1, 1, 1), stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        seen = shifted(x, self.shift_div) if self.shift_div else x
        residual = self.relu(self.conv1(seen))
        out: Tensor = self.relu(self.conv2(residual) + self.shortcut(seen if self.shift_shortcut else x))
        return out


# depth -> kind of block, blocks a stage; 10 is for the tiny networks of tests and demo.
STAGES: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


def per_block(values: PerBlock, num_blocks: Sequence[int]) -> list[list[bool]]:
    """One value a stage (0 or 1) or a list of one a block -> lists of one a block."""
    lists = []
    for stage, (value, num) in enumerate(zip(values, num_blocks, strict=True), start=2):
        each = [value] * num if isinstance(value, int) else list(value)
        if len(each) != num:
            raise ValueError(f"res{stage} has {num} blocks, {value} names {len(each)}")
        lists.append([bool(item) for item in each])
    return lists


class Trunk(nn.Module):
    """Stem and stages: clips [N, in_channels, T, H, W] -> the map before pooling, [N, channels, T, H/32, W/32].

    ``inflate``, ``non_local``: which blocks look along time, which are followed by a non-local block; one value a stage
    (0 or 1) or a list of one a block. ``spatial_strides``: of the stages' first blocks. ``pool1_padding``: 1, or 0 as
    mmaction2's C2D has it. ``shift_div``: see ``shifted``. ``shift_place``: "blockres" shifts what a block's first
    convolution sees, in R101 and deeper in every second block; "block" what the whole block sees, in every block.
    ``temporal_pool``: halve the frames after res2 (TSM's).
    ``lateral_channels``: channels that come into each stage from elsewhere (SlowFast).
    """

    def __init__(
        self,
        *,
        depth: int,
        in_channels: int = 3,
        base_channels: int = 64,
        conv1_kernel: Sequence[int] = (1, 7, 7),
        conv1_stride_t: int = 1,
        pool1_stride_t: int = 1,
        pool1_padding: int = 1,
        with_pool1: bool = True,
        with_pool2: bool = False,
        inflate: PerBlock = (0, 0, 1, 1),
        spatial_strides: Sequence[int] = (1, 2, 2, 2),
        non_local: PerBlock = (0, 0, 0, 0),
        non_local_mode: str = "embedded_gaussian",
        non_local_scale: bool = True,
        non_local_pool: bool = True,
        non_local_pool_first: bool = False,
        non_local_out_bias: bool = False,
        shift_div: int | None = None,
        shift_place: Literal["blockres", "block"] = "blockres",
        temporal_pool: bool = False,
        lateral_channels: Sequence[int] = (0, 0, 0, 0),
    ) -> None:
        super().__init__()
        block, num_blocks = STAGES[depth]
        self.stem = ConvBN(in_channels, base_channels, conv1_kernel, (conv1_stride_t, 2, 2))
        self.relu = nn.ReLU(inplace=True)
        pool1 = nn.MaxPool3d((1, 3, 3), (pool1_stride_t, 2, 2), (0, pool1_padding, pool1_padding))
        self.pool1 = pool1 if with_pool1 else nn.Identity()
        self.pool2: nn.Module = nn.MaxPool3d((2, 1, 1), (2, 1, 1)) if with_pool2 else nn.Identity()
        if temporal_pool:
            self.pool2 = nn.MaxPool3d((3, 1, 1), (2, 1, 1), (1, 0, 0))
        self.non_local = nn.ModuleDict()
        inflated, followed = per_block(inflate, num_blocks), per_block(non_local, num_blocks)
        channels = base_channels
        for stage, num in enumerate(num_blocks):
            width = base_channels * 2**stage
            every_second = shift_place == "blockres" and num_blocks[2] >= 23
            blocks = nn.Sequential()
            for index in range(num):
                blocks.append(
                    block(
                        channels + (0 if index else lateral_channels[stage]),
                        width,
                        spatial_stride=1 if index else spatial_strides[stage],
                        inflated=inflated[stage][index],
                        shift_div=None if every_second and index % 2 else shift_div,
                        shift_shortcut=shift_place == "block",
                    )
                )
                channels = width * block.expansion
                if followed[stage][index]:
                    self.non_local[f"res{stage + 2}_{index}"] = NonLocal(
                        channels,
                        mode=non_local_mode,
                        scale=non_local_scale,
                        pool=non_local_pool,
                        pool_first=non_local_pool_first,
                        out_bias=non_local_out_bias,
                    )
            self.add_module(f"res{stage + 2}", blocks)
        self.channels = channels

    def first(self, x: Tensor) -> Tensor:
        """Stem and its pooling."""
        out: Tensor = self.pool1(self.relu(self.stem(x)))
        return out

    def stage(self, number: int, x: Tensor) -> Tensor:
        """``res2`` (with the pooling after it) to ``res5``."""
        blocks = self.get_submodule(f"res{number}")
        assert isinstance(blocks, nn.Sequential)
        for index, block in enumerate(blocks):
            x = block(x)
            name = f"res{number}_{index}"
            if name in self.non_local:
                x = self.non_local[name](x)
        return self.pool2(x) if number == 2 else x

    def features(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number in (2, 3, 4, 5):
            x = self.stage(number, x)
        return x


class ResNet3d(Trunk):
    """A trunk with a classifier: normalised clips [N, in_channels, T, H, W] -> logits [N, num_classes].

    ``network`` are the arguments of ``Trunk``; ``head_pool``, ``train_crop_px``: see ``classified``. Weights are drawn
    from torch's generator in a fixed order: the same seed gives the same network.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 50,
        dropout_ratio: float = 0.5,
        zero_init_residual: bool = True,
        head_pool: str = "global",
        train_crop_px: int = 224,
        **network: Any,
    ) -> None:
        super().__init__(depth=depth, **network)
        self.head_pool = head_pool
        self.train_crop_px = train_crop_px
        self.dropout = nn.Dropout(dropout_ratio)
        self.head = nn.Linear(self.channels, num_classes)
        initialise(self, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        window = head_window(x, self.train_crop_px)
        return classified([self.features(x)], self.dropout, self.head, head_pool=self.head_pool, window=window)


def head_window(x: Tensor, train_crop_px: int) -> tuple[int, int]:
    """How many positions of the last map the head pools over: all of a clip smaller than the crops of training, else as
    many as PySlowFast counts for these, which at 112 pixels is 3 of 4 (slowfast/models/video_model_builder.py)."""
    height, width = (max(1, train_crop_px // 32) if size >= train_crop_px else -(-size // 32) for size in x.shape[3:])
    return height, width


def classified(
    maps: Sequence[Tensor], dropout: nn.Module, head: nn.Module, *, head_pool: str, window: tuple[int, int]
) -> Tensor:
    """Last maps [N, C, T, H, W] of each pathway -> logits [N, num_classes].

    They differ only where a picture is larger than the crops of training, so that ``window`` is smaller than a map:

        global   mean over the whole map (mmaction2, GluonCV)
        logits   mean over each window, classify, mean of the logits (pytorchvideo models/head.py)
        softmax  mean over each window, classify, log of mean softmax (PySlowFast slowfast/models/head_helper.py:338)
    """
    if head_pool == "global":
        pooled = torch.cat([each.mean(dim=(2, 3, 4)) for each in maps], dim=1)
        logits: Tensor = head(dropout(pooled))
        return logits
    windows = torch.cat([avg_pool2d(each.mean(dim=2), window, stride=1) for each in maps], dim=1)
    logits = head(dropout(windows.flatten(2).transpose(1, 2)))  # [N, windows, num_classes]
    if head_pool == "logits" or logits.shape[1] == 1:
        return logits.mean(dim=1)
    return logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])


@torch.no_grad()
def initialise(net: nn.Module, *, zero_init_residual: bool) -> None:
    """He normal (fan out) for convolutions, normal 0.01 for the classifier; residual branches may start at zero."""
    if next(net.parameters()).is_meta:
        return  # weights will be put in; drawing numbers on "meta" would import torch's compiler, 2 s
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    if zero_init_residual:
        for module in net.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.conv3.bn.weight)
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.conv2.bn.weight)
            elif isinstance(module, NonLocal):
                nn.init.zeros_(module.bn.weight)
