"""R(2+1)D: every 3D convolution is a spatial one and then a temporal one, with batch norm and ReLU in between.

    stem   7x7 then 3x1x1, 64, stride (1, 2, 2);  max pool 1x3x3, stride (1, 2, 2)
    res2   [ 3x3x3, 64    3x3x3, 64  ] x 3
    res3   [ 3x3x3, 128   3x3x3, 128 ] x 4        the first block of res3, res4, res5 halves time and space
    res4   [ 3x3x3, 256   3x3x3, 256 ] x 6
    res5   [ 3x3x3, 512   3x3x3, 512 ] x 3
    mean over T, H, W;  dropout;  linear

From R50 on the blocks are bottlenecks: 1x1x1, 3x3x3, 1x1x1 to four times the width.

Source: Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition" (2018). The programs differ
in what no key tells. The defaults are mmaction2's (mmaction/models/backbones/resnet2plus1d.py, common/conv2plus1d.py):

    mmaction2          max pool; shortcuts are factored too; eps 1e-3, in between 1e-5
    GluonCV v1         no pool; channels in between follow from the block's input; eps 1e-5 (as in torchvision)
    GluonCV v2         no pool; eps 1e-3 everywhere (as in VMZ)
    pytorchvideo R50   no pool; stem 1x7x7; temporal first; res2 halves space, res2 and res3 keep time; eps 1e-5
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from .resnet3d import STAGES, BasicBlock, ConvBN, Triple, classified, head_window, initialise


class Conv2plus1d(nn.Module):
    """Spatial convolution, batch norm, ReLU, temporal convolution, batch norm; or the temporal one first.

    ``middle``: channels in between. ``bn_s`` is the batch norm in between, whichever comes first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Triple,
        stride: Triple = (1, 1, 1),
        *,
        middle: int,
        eps: float,
        middle_eps: float,
        temporal_first: bool,
    ) -> None:
        super().__init__()
        t, h, w = kernel
        self.temporal_first = temporal_first
        spatial = (middle, out_channels) if temporal_first else (in_channels, middle)
        temporal = (in_channels, middle) if temporal_first else (middle, out_channels)
        self.conv_s = nn.Conv3d(*spatial, (1, h, w), (1, *stride[1:]), (0, h // 2, w // 2), bias=False)
        self.bn_s = nn.BatchNorm3d(middle, eps=middle_eps)
        self.conv_t = nn.Conv3d(*temporal, (t, 1, 1), (stride[0], 1, 1), (t // 2, 0, 0), bias=False)
        self.bn = nn.BatchNorm3d(out_channels, eps=eps)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.conv_t, self.conv_s) if self.temporal_first else (self.conv_s, self.conv_t)
        out: Tensor = self.bn(second(self.relu(self.bn_s(first(x)))))
        return out


def middle_channels(in_channels: int, out_channels: int, kernel: Triple = (3, 3, 3)) -> int:
    """As many as give the two convolutions together the weights of one 3D convolution of three frames."""
    area = kernel[1] * kernel[2]
    return 3 * area * in_channels * out_channels // (area * in_channels + 3 * out_channels)


class Block(nn.Module):
    """Two (2+1)D convolutions, or one between two 1x1x1, around a shortcut."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        bottleneck: bool,
        stride: Triple,
        middle_of: str,
        factored_shortcut: bool,
        **rule: Any,
    ) -> None:
        super().__init__()
        out_channels = 4 * width if bottleneck else width
        block_middle = middle_channels(in_channels, width)

        def factored(inputs: int, strides: Triple = (1, 1, 1)) -> Conv2plus1d:
            middle = {"block": block_middle, "conv": middle_channels(inputs, width), "out": width}[middle_of]
            return Conv2plus1d(inputs, width, (3, 3, 3), strides, middle=middle, **rule)

        eps = rule["eps"]
        self.conv1: nn.Module = (
            ConvBN(in_channels, width, (1, 1, 1), eps=eps) if bottleneck else factored(in_channels, stride)
        )
        self.conv2 = factored(width, stride if bottleneck else (1, 1, 1))
        self.conv3 = ConvBN(width, out_channels, (1, 1, 1), eps=eps) if bottleneck else None
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != (1, 1, 1):
            if factored_shortcut:
                middle = middle_channels(in_channels, out_channels, (1, 1, 1))
                self.shortcut = Conv2plus1d(in_channels, out_channels, (1, 1, 1), stride, middle=middle, **rule)
            else:
                self.shortcut = ConvBN(in_channels, out_channels, (1, 1, 1), stride, eps=eps)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(self.relu(self.conv1(x)))
        if self.conv3 is not None:
            residual = self.conv3(self.relu(residual))
        out: Tensor = self.relu(residual + self.shortcut(x))
        return out


class R2plus1d(nn.Module):
    """Normalised clips [N, in_channels, T, H, W] -> logits [N, num_classes].

    ``stem_channels``: in between the stem's two convolutions, ``None`` = by the rule of the others, 0 = the stem is one
    convolution, 1x7x7. ``middle_of``: what channels in between follow from, each convolution or the block's input and
    width, or "out": they equal the channels that come out. ``head_pool``: see ``resnet3d.classified``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 34,
        in_channels: int = 3,
        base_channels: int = 64,
        stem_channels: int | None = None,
        with_pool1: bool = True,
        middle_of: Literal["conv", "block", "out"] = "conv",
        factored_shortcut: bool = True,
        temporal_first: bool = False,
        temporal_strides: Sequence[int] = (1, 2, 2, 2),
        spatial_strides: Sequence[int] = (1, 2, 2, 2),
        eps: float = 1e-3,
        middle_eps: float = 1e-5,
        head_pool: str = "global",
        train_crop_px: int = 224,
        dropout_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        self.head_pool = head_pool
        self.train_crop_px = train_crop_px
        rule: dict[str, Any] = {"eps": eps, "middle_eps": middle_eps, "temporal_first": temporal_first}
        self.stem: nn.Module
        if stem_channels == 0:
            self.stem = ConvBN(in_channels, base_channels, (1, 7, 7), (1, 2, 2), eps=eps)
        else:
            middle = stem_channels or middle_channels(in_channels, base_channels, (3, 7, 7))
            self.stem = Conv2plus1d(in_channels, base_channels, (3, 7, 7), (1, 2, 2), middle=middle, **rule)
        self.relu = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if with_pool1 else nn.Identity()
        kind, num_blocks = STAGES[depth]
        channels = base_channels
        for stage, num in enumerate(num_blocks):
            width = base_channels * 2**stage
            blocks = nn.Sequential()
            for index in range(num):
                space = spatial_strides[stage]
                block = Block(
                    channels,
                    width,
                    bottleneck=kind is not BasicBlock,
                    stride=(1, 1, 1) if index else (temporal_strides[stage], space, space),
                    middle_of=middle_of,
                    factored_shortcut=factored_shortcut,
                    **rule,
                )
                blocks.append(block)
                channels = width * kind.expansion
            self.add_module(f"res{stage + 2}", blocks)
        self.dropout = nn.Dropout(dropout_ratio)
        self.head = nn.Linear(channels, num_classes)
        initialise(self, zero_init_residual=False)

    def forward(self, x: Tensor) -> Tensor:
        window = head_window(x, self.train_crop_px)
        x = self.pool1(self.relu(self.stem(x)))
        for name in ("res2", "res3", "res4", "res5"):
            x = self.get_submodule(name)(x)
        return classified([x], self.dropout, self.head, head_pool=self.head_pool, window=window)
