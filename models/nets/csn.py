"""CSN: 3D bottlenecks whose only convolution over time and space works on each channel alone.

    stem   3x7x7, 64, stride (1, 2, 2);  max pool 1x3x3, stride (1, 2, 2)
    res2   [ 1x1x1, 64    middle, 64    1x1x1, 256  ] x 3
    res3   [ 1x1x1, 128   middle, 128   1x1x1, 512  ] x 4      the middle of the first block of res3, res4, res5
    res4   [ 1x1x1, 256   middle, 256   1x1x1, 1024 ] x 6      halves time and space
    res5   [ 1x1x1, 512   middle, 512   1x1x1, 2048 ] x 3
    mean over T, H, W;  dropout;  linear

    middle of ir-CSN (interaction-reduced)     3x3x3, a kernel a channel
    middle of ip-CSN (interaction-preserved)   1x1x1 with batch norm, then 3x3x3, a kernel a channel

Source: Tran et al., "Video Classification with Channel-Separated Convolutional Networks" (2019), here as mmaction2
has it (mmaction/models/backbones/resnet3d_csn.py), with eps 1e-3 in every batch norm.
"""

from __future__ import annotations

from typing import Literal, Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from .resnet3d import STAGES, ConvBN, Triple, classified, head_window, initialise


class Block(nn.Module):
    """A bottleneck to four times the width around a shortcut; ``stride`` along time and space."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int, bottleneck_mode: str, eps: float) -> None:
        super().__init__()
        strides: Triple = (stride, stride, stride)
        out_channels = width * self.expansion
        self.conv1 = ConvBN(in_channels, width, (1, 1, 1), eps=eps)
        self.conv2 = nn.Sequential(ConvBN(width, width, (3, 3, 3), strides, groups=width, eps=eps))
        if bottleneck_mode == "ip":
            self.conv2.insert(0, ConvBN(width, width, (1, 1, 1), eps=eps))
        self.conv3 = ConvBN(width, out_channels, (1, 1, 1), eps=eps)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = ConvBN(in_channels, out_channels, (1, 1, 1), strides, eps=eps)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.conv2(self.relu(self.conv1(x))))
        out: Tensor = self.relu(self.conv3(residual) + self.shortcut(x))
        return out


class Csn(nn.Module):
    """Normalised clips [N, in_channels, T, H, W] -> logits [N, num_classes].

    ``bn_frozen``: in training, too, batch norms keep their statistics, weights and biases. ``head_pool``: see
    ``resnet3d.classified``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 50,
        bottleneck_mode: Literal["ip", "ir"] = "ir",
        in_channels: int = 3,
        base_channels: int = 64,
        with_pool1: bool = True,
        with_pool2: bool = False,
        eps: float = 1e-3,
        bn_frozen: bool = False,
        head_pool: str = "global",
        train_crop_px: int = 224,
        dropout_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        if bottleneck_mode not in ("ip", "ir"):
            raise ValueError(f"bottleneck_mode {bottleneck_mode!r}; there are ip, ir")
        self.bn_frozen = bn_frozen
        self.head_pool = head_pool
        self.train_crop_px = train_crop_px
        self.stem = ConvBN(in_channels, base_channels, (3, 7, 7), (1, 2, 2), eps=eps)
        self.relu = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if with_pool1 else nn.Identity()
        self.pool2 = nn.MaxPool3d((2, 1, 1), (2, 1, 1)) if with_pool2 else nn.Identity()
        channels = base_channels
        for stage, num in enumerate(STAGES[depth][1]):
            width = base_channels * 2**stage
            blocks = nn.Sequential()
            for index in range(num):
                stride = 1 if stage == 0 or index else 2
                blocks.append(Block(channels, width, stride=stride, bottleneck_mode=bottleneck_mode, eps=eps))
                channels = width * Block.expansion
            self.add_module(f"res{stage + 2}", blocks)
        self.dropout = nn.Dropout(dropout_ratio)
        self.head = nn.Linear(channels, num_classes)
        initialise(self, zero_init_residual=False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.bn_frozen:
            for module in self.modules():
                if isinstance(module, BatchNorm):
                    module.eval().requires_grad_(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        window = head_window(x, self.train_crop_px)
        x = self.pool1(self.relu(self.stem(x)))
        for number in (2, 3, 4, 5):
            x = self.get_submodule(f"res{number}")(x)
            x = self.pool2(x) if number == 2 else x
        return classified([x], self.dropout, self.head, head_pool=self.head_pool, window=window)
