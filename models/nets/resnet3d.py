"""3D residual networks: SlowOnly and what is made of the same blocks.

Shapes: N clips, C channels, T frames, H x W pixels; every tensor is [N, C, T, H, W] unless a name says otherwise.

    stem   conv1_kernel, 64, stride (conv1_stride_t, 2, 2);  max pool 1x3x3, stride (pool1_stride_t, 2, 2)
    res2   [ Tx1x1, 64   1x3x3, 64   1x1x1, 256  ] x 3        T = 3 where ``inflate`` is 1, else 1
    res3   [ Tx1x1, 128  1x3x3, 128  1x1x1, 512  ] x 4        the 3x3 of a stage's first block has the spatial stride
    res4   [ Tx1x1, 256  1x3x3, 256  1x1x1, 1024 ] x 6
    res5   [ Tx1x1, 512  1x3x3, 512  1x1x1, 2048 ] x 3
    mean over T, H, W;  dropout;  linear

Source: Feichtenhofer et al., "SlowFast Networks for Video Recognition" (2019), table 1, the slow pathway;
mmaction2 mmaction/models/backbones/resnet3d.py (where the spatial stride sits) and resnet3d_slowonly.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Triple = tuple[int, int, int]


class ConvBN(nn.Module):
    """Convolution without bias, padded to keep the size at stride 1, then batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        t, h, w = kernel
        self.conv = nn.Conv3d(in_channels, out_channels, (t, h, w), stride, (t // 2, h // 2, w // 2), bias=False)
        self.bn = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out


class Bottleneck(nn.Module):
    """1x1 (3x1x1 when ``inflated``), 3x3 with the spatial stride, 1x1 to four times the width, around a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, spatial_stride: int, inflated: bool) -> None:
        super().__init__()
        stride = (1, spatial_stride, spatial_stride)
        out_channels = width * self.expansion
        self.conv1 = ConvBN(in_channels, width, (3 if inflated else 1, 1, 1))
        self.conv2 = ConvBN(width, width, (1, 3, 3), stride)
        self.conv3 = ConvBN(width, out_channels, (1, 1, 1))
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or spatial_stride != 1:
            self.shortcut = ConvBN(in_channels, out_channels, (1, 1, 1), stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.conv1(x))
        residual = self.relu(self.conv2(residual))
        out: Tensor = self.relu(self.conv3(residual) + self.shortcut(x))
        return out


class BasicBlock(nn.Module):
    """Two 3x3 (3x3x3 when ``inflated``), the first with the spatial stride, around a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, spatial_stride: int, inflated: bool) -> None:
        super().__init__()
        stride = (1, spatial_stride, spatial_stride)
        kernel = (3 if inflated else 1, 3, 3)
        self.conv1 = ConvBN(in_channels, width, kernel, stride)
        self.conv2 = ConvBN(width, width, kernel)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != width or spatial_stride != 1:
            self.shortcut = ConvBN(in_channels, width, (1, 1, 1), stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.conv1(x))
        out: Tensor = self.relu(self.conv2(residual) + self.shortcut(x))
        return out


# depth -> kind of block, blocks a stage; 10 is for the tiny networks of tests and demo.
STAGES: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet3d(nn.Module):
    """The network drawn above: normalised clips [N, in_channels, T, H, W] -> logits [N, num_classes].

    ``inflate``: which blocks look along time, one value a stage (0 or 1) or a list of one a block. ``conv1_kernel`` is
    (t, h, w). ``spatial_strides`` are those of the stages' first blocks.
    Weights are drawn from torch's generator in a fixed order: the same seed gives the same network.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 50,
        in_channels: int = 3,
        base_channels: int = 64,
        conv1_kernel: Sequence[int] = (1, 7, 7),
        conv1_stride_t: int = 1,
        pool1_stride_t: int = 1,
        with_pool1: bool = True,
        inflate: Sequence[int | Sequence[int]] = (0, 0, 1, 1),
        spatial_strides: Sequence[int] = (1, 2, 2, 2),
        dropout_ratio: float = 0.5,
        zero_init_residual: bool = True,
    ) -> None:
        super().__init__()
        self.stem = ConvBN(in_channels, base_channels, conv1_kernel, (conv1_stride_t, 2, 2))
        self.relu = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool3d((1, 3, 3), (pool1_stride_t, 2, 2), (0, 1, 1)) if with_pool1 else nn.Identity()
        channels = base_channels
        block, num_blocks = STAGES[depth]
        for number, (num, stride, inflated) in enumerate(zip(num_blocks, spatial_strides, inflate, strict=True)):
            width = base_channels * 2**number
            per_block = [inflated] * num if isinstance(inflated, int) else inflated
            if len(per_block) != num:
                raise ValueError(f"res{number + 2} has {num} blocks at depth {depth}, inflate names {inflated}")
            blocks = nn.Sequential()
            for index, looks_along_time in enumerate(per_block):
                blocks.append(
                    block(channels, width, spatial_stride=1 if index else stride, inflated=bool(looks_along_time))
                )
                channels = width * block.expansion
            self.add_module(f"res{number + 2}", blocks)
        self.dropout = nn.Dropout(dropout_ratio)
        self.head = nn.Linear(channels, num_classes)
        initialise(self, zero_init_residual=zero_init_residual)

    def features(self, x: Tensor) -> Tensor:
        """The map before pooling, [N, C, T, H/32, W/32]."""
        x = self.pool1(self.relu(self.stem(x)))
        for name in ("res2", "res3", "res4", "res5"):
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.features(x).mean(dim=(2, 3, 4))
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


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
        elif isinstance(module, Bottleneck) and zero_init_residual:
            nn.init.zeros_(module.conv3.bn.weight)
        elif isinstance(module, BasicBlock) and zero_init_residual:
            nn.init.zeros_(module.conv2.bn.weight)
