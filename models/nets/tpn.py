"""TPN: the last two stages of a SlowOnly or a TSM, pooled to different tempos and fused in both directions.

    res4, res5            spatial modulation: res4 gets res5's size and channels (1x3x3, stride 2)
    temporal modulation   3x1x1 in 32 groups, half the channels; max pool over ``temporal_scales`` frames
    top-down              res4 + res5, then both fused: 1x1x1 in 32 groups each, concatenated, 1x1x1
    bottom-up             res5 + (3x1x1 of res4), then fused likewise
    both concatenated, 1x1x1;  mean over T, H, W;  dropout;  linear

    flow_type   "cascade": bottom-up starts from what top-down has summed;  "parallel": from what it started from

Source: Yang et al., "Temporal Pyramid Network for Action Recognition" (2020), here as mmaction2 has it
(mmaction/models/necks/tpn.py). Its test of whole frames ("fcn_test") is this mean, then the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .resnet3d import ConvBN, Trunk, initialise

GROUPS = 32


class LevelFusion(nn.Module):
    """Levels [N, C, T, H, W] each -> [N, out_channels, T, H, W]."""

    def __init__(self, channels: int, out_channels: int, num_levels: int) -> None:
        super().__init__()
        self.downsamples = nn.ModuleList(
            ConvBN(channels, channels, (1, 1, 1), groups=GROUPS) for _ in range(num_levels)
        )
        self.fusion_conv = ConvBN(num_levels * channels, out_channels, (1, 1, 1))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        each = [self.relu(conv(level)) for conv, level in zip(self.downsamples, levels, strict=True)]
        out: Tensor = self.relu(self.fusion_conv(torch.cat(each, dim=1)))
        return out


class AuxiliaryHead(nn.Module):
    """What the originals also classify res4 with, in training. Kept for files to stay whole; nothing runs it here."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvBN(channels, 2 * channels, (1, 3, 3), (1, 2, 2))
        self.fc = nn.Linear(2 * channels, num_classes)


class Tpn(Trunk):
    """Normalised clips [N, in_channels, T, H, W] -> logits [N, num_classes]; ``network``: arguments of ``Trunk``.

    ``aux_head``: whether to hold the weights of the originals' auxiliary head.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 50,
        temporal_scales: Sequence[int] = (8, 8),
        flow_type: Literal["cascade", "parallel"] = "cascade",
        aux_head: bool = True,
        dropout_ratio: float = 0.5,
        zero_init_residual: bool = True,
        **network: Any,
    ) -> None:
        super().__init__(depth=depth, **network)
        self.flow_type = flow_type
        whole, half = self.channels, self.channels // 2
        self.spatial_modulation = ConvBN(half, whole, (1, 3, 3), (1, 2, 2))
        self.temporal_modulation = nn.ModuleList(
            nn.Conv3d(whole, half, (3, 1, 1), padding=(1, 0, 0), groups=GROUPS, bias=False) for _ in temporal_scales
        )
        self.temporal_pools = nn.ModuleList(
            nn.MaxPool3d((scale, 1, 1), (scale, 1, 1), ceil_mode=True) for scale in temporal_scales
        )
        # Where res4 keeps more frames than res5 (GluonCV's R101), it gives them up before the two are fused.
        ratio = temporal_scales[1] // temporal_scales[0]
        self.level_pool = nn.MaxPool3d((ratio, 1, 1), (ratio, 1, 1), ceil_mode=True) if ratio > 1 else nn.Identity()
        self.level_fusion_1 = LevelFusion(half, whole, 2)
        self.bottom_up = nn.Conv3d(half, half, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.level_fusion_2 = LevelFusion(half, whole, 2)
        self.pyramid_fusion = ConvBN(2 * whole, whole, (1, 1, 1))
        if aux_head:
            self.aux_head = AuxiliaryHead(half, num_classes)
        self.dropout = nn.Dropout(dropout_ratio)
        self.head = nn.Linear(whole, num_classes)
        initialise(self, zero_init_residual=zero_init_residual)

    def pyramid(self, res4: Tensor, res5: Tensor) -> Tensor:
        levels = (self.relu(self.spatial_modulation(res4)), res5)
        four, five = (
            pool(conv(level))
            for pool, conv, level in zip(self.temporal_pools, self.temporal_modulation, levels, strict=True)
        )
        summed = four + five
        top_down = self.level_fusion_1((self.level_pool(summed), five))
        bottom = summed if self.flow_type == "cascade" else four
        bottom_up = self.level_fusion_2((self.level_pool(bottom), five + self.level_pool(self.bottom_up(bottom))))
        out: Tensor = self.relu(self.pyramid_fusion(torch.cat((top_down, bottom_up), dim=1)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number in (2, 3, 4):
            x = self.stage(number, x)
        pooled = self.pyramid(x, self.stage(5, x)).mean(dim=(2, 3, 4))
        logits: Tensor = self.head(self.dropout(pooled))
        return logits
