"""R(2+1)D: every 3D convolution is a spatial one and then a temporal one, with batch norm and ReLU in between.

    stem   7x7 then 3x1x1, 64, stride (1, 2, 2);  max pool 1x3x3, stride (1, 2, 2)
    res2   [ 3x3x3, 64    3x3x3, 64  ] x 3
    res3   [ 3x3x3, 128   3x3x3, 128 ] x 4        the first block of res3, res4, res5 halves time and space
    res4   [ 3x3x3, 256   3x3x3, 256 ] x 6
    res5   [ 3x3x3, 512   3x3x3, 512 ] x 3
    mean over T, H, W;  dropout;  linear

Source: Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition" (2018), here as mmaction2 has
it (mmaction/models/backbones/resnet2plus1d.py): with a max pool, eps 1e-3 in every batch norm but those in between,
and as many channels in between as a 3D kernel of 3 frames would have weights, for the 1x1x1 shortcuts too
(mmaction/models/common/conv2plus1d.py).
"""

from __future__ import annotations

from torch import Tensor, nn

from .resnet3d import Triple, initialise

STAGE_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
EPS = 1e-3


class Conv2plus1d(nn.Module):
    """Spatial convolution, batch norm, ReLU, temporal convolution, batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        t, h, w = kernel
        middle = 3 * h * w * in_channels * out_channels // (h * w * in_channels + 3 * out_channels)
        self.conv_s = nn.Conv3d(in_channels, middle, (1, h, w), (1, *stride[1:]), (0, h // 2, w // 2), bias=False)
        self.bn_s = nn.BatchNorm3d(middle)
        self.conv_t = nn.Conv3d(middle, out_channels, (t, 1, 1), (stride[0], 1, 1), (t // 2, 0, 0), bias=False)
        self.bn = nn.BatchNorm3d(out_channels, eps=EPS)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv_t(self.relu(self.bn_s(self.conv_s(x)))))
        return out


class Block(nn.Module):
    """Two (2+1)D convolutions around a shortcut; ``stride`` is that of the first, along time and space."""

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2plus1d(in_channels, width, (3, 3, 3), (stride, stride, stride))
        self.conv2 = Conv2plus1d(width, width, (3, 3, 3))
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != width or stride != 1:
            self.shortcut = Conv2plus1d(in_channels, width, (1, 1, 1), (stride, stride, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv2(self.relu(self.conv1(x))) + self.shortcut(x))
        return out


class R2plus1d(nn.Module):
    """Normalised clips [N, in_channels, T, H, W] -> logits [N, num_classes]."""

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 34,
        in_channels: int = 3,
        base_channels: int = 64,
        dropout_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        self.stem = Conv2plus1d(in_channels, base_channels, (3, 7, 7), (1, 2, 2))
        self.relu = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        channels = base_channels
        for stage, num in enumerate(STAGE_BLOCKS[depth]):
            width = base_channels * 2**stage
            blocks = nn.Sequential(Block(channels, width, stride=1 if stage == 0 else 2))
            blocks.extend(Block(width, width, stride=1) for _ in range(num - 1))
            self.add_module(f"res{stage + 2}", blocks)
            channels = width
        self.dropout = nn.Dropout(dropout_ratio)
        self.head = nn.Linear(channels, num_classes)
        initialise(self, zero_init_residual=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu(self.stem(x)))
        for name in ("res2", "res3", "res4", "res5"):
            x = self.get_submodule(name)(x)
        logits: Tensor = self.head(self.dropout(x.mean(dim=(2, 3, 4))))
        return logits
