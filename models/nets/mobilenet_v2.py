"""MobileNetV2 with temporal shift: TSM's light network. A kernel sees one frame, shifted channels its neighbours.

    stem   3x3, 32, stride 2
    res2   16,  expansion 1, x 1, stride 1          a block: 1x1 to ``expansion`` times the channels; 3x3, a kernel a
    res3   24,  expansion 6, x 2, stride 2          channel; 1x1 to the channels of the stage. Around it a shortcut
    res4   32,  expansion 6, x 3, stride 2          where its input and output have the same shape, and in these
    res5   64,  expansion 6, x 4, stride 2          blocks the first convolution sees shifted channels.
    res6   96,  expansion 6, x 3, stride 1
    res7   160, expansion 6, x 3, stride 2
    res8   320, expansion 6, x 1, stride 1
    1x1, 1280;  mean over T, H, W;  dropout;  linear

Sources: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), table 2; Lin et al., "TSM:
Temporal Shift Module" (2019); mmaction2 mmaction/models/backbones/mobilenet_v2.py, mobilenet_v2_tsm.py:41.
"""

from __future__ import annotations

from torch import Tensor, nn

from .resnet3d import ConvBN, initialise, shifted

# expansion, channels, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def widened(channels: int, widen_factor: float) -> int:
    """The multiple of 8 that is nearest to channels * widen_factor, and not below nine tenths of it."""
    wanted = channels * widen_factor
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class InvertedResidual(nn.Module):
    """Widen, look around, narrow; ``shift_div``: see ``resnet3d.shifted``, where all three and a shortcut are there."""

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int, shift_div: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.conv = nn.Sequential(
            ConvBN(wide, wide, (1, 3, 3), (1, stride, stride), groups=wide), ConvBN(wide, out_channels, (1, 1, 1))
        )
        if expansion != 1:
            self.conv.insert(0, ConvBN(in_channels, wide, (1, 1, 1)))
        self.act = nn.ReLU6(inplace=True)
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.shift_div = shift_div if self.has_shortcut and expansion != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = shifted(x, self.shift_div) if self.shift_div else x
        for conv in self.conv[:-1]:
            out = self.act(conv(out))
        narrow: Tensor = self.conv[-1](out)
        return x + narrow if self.has_shortcut else narrow


class MobileNetV2(nn.Module):
    """Normalised clips [N, in_channels, T, H, W] -> logits [N, num_classes]."""

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        widen_factor: float = 1.0,
        shift_div: int = 8,
        dropout_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        channels = widened(32, widen_factor)
        self.stem = ConvBN(in_channels, channels, (1, 3, 3), (1, 2, 2))
        for stage, (expansion, stage_channels, num, stride) in enumerate(STAGES):
            out_channels = widened(stage_channels, widen_factor)
            blocks = nn.Sequential()
            for index in range(num):
                blocks.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        expansion=expansion,
                        stride=1 if index else stride,
                        shift_div=shift_div,
                    )
                )
                channels = out_channels
            self.add_module(f"res{stage + 2}", blocks)
        last_channels = int(1280 * max(1.0, widen_factor))
        self.conv2 = ConvBN(channels, last_channels, (1, 1, 1))
        self.act = nn.ReLU6(inplace=True)
        self.dropout = nn.Dropout(dropout_ratio)
        self.head = nn.Linear(last_channels, num_classes)
        initialise(self, zero_init_residual=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        for number in range(2, 2 + len(STAGES)):
            x = self.get_submodule(f"res{number}")(x)
        x = self.act(self.conv2(x))
        logits: Tensor = self.head(self.dropout(x.mean(dim=(2, 3, 4))))
        return logits
