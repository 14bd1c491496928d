"""SlowFast: a slow pathway that sees what things are, a fast and thin one that sees how they move.

    fast     all T frames, 1/channel_ratio of the channels, looks along time in every stage
    slow     one frame in ``resample_rate``, a SlowOnly
    lateral  after the stem, res2, res3, res4: fast -> slow, fusion_kernel x1x1 with stride ``speed_ratio`` along time,
             twice the channels; concatenated to the slow features
    head     mean over each pathway, [slow, fast] concatenated;  dropout;  linear

Source: Feichtenhofer et al., "SlowFast Networks for Video Recognition" (2019), table 1. The programs differ in details
that no key tells: mmaction2 takes slow frames 0, tau, 2 tau, ... and has a bare lateral convolution
(mmaction/models/backbones/resnet3d_slowfast.py); PySlowFast and pytorchvideo spread them to the last frame, GluonCV
does not, and all three have batch norm and ReLU there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .resnet3d import PerBlock, Trunk, classified, head_window, initialise


class SlowFast(nn.Module):
    """Normalised clips [N, 3, T, H, W], T a multiple of ``resample_rate`` -> logits [N, num_classes].

    The slow pathway sees one frame in ``resample_rate`` (tau), the fast one ``speed_ratio`` (alpha) times as many;
    ``channel_ratio``: 1 / beta.
    ``slow_frames``: "stride" = 0, tau, 2 tau, ...; "spread" = evenly from the first to the last.
    ``lateral_norm``: batch norm and ReLU behind the lateral convolutions. ``slow_inflate``, ``fast_inflate``: which
    blocks look along time; ``non_local...``: of the slow pathway (``Trunk``). ``head_pool``: see ``classified``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 50,
        fast_depth: int | None = None,
        in_channels: int = 3,
        base_channels: int = 64,
        resample_rate: int = 8,
        speed_ratio: int = 8,
        channel_ratio: int = 8,
        fusion_kernel: int = 5,
        lateral_norm: bool = False,
        slow_frames: Literal["stride", "spread"] = "stride",
        slow_inflate: PerBlock = (0, 0, 1, 1),
        fast_inflate: PerBlock = (1, 1, 1, 1),
        non_local: PerBlock = (0, 0, 0, 0),
        non_local_mode: str = "embedded_gaussian",
        non_local_scale: bool = True,
        non_local_pool: bool = True,
        non_local_pool_first: bool = False,
        non_local_out_bias: bool = False,
        head_pool: str = "global",
        train_crop_px: int = 224,
        dropout_ratio: float = 0.5,
        zero_init_residual: bool = True,
    ) -> None:
        super().__init__()
        self.resample_rate = resample_rate
        self.slow_frames = slow_frames
        self.head_pool = head_pool
        self.train_crop_px = train_crop_px
        self.fast_stride = resample_rate // speed_ratio
        fast_channels = base_channels // channel_ratio
        self.fast = Trunk(
            depth=fast_depth or depth,
            in_channels=in_channels,
            base_channels=fast_channels,
            conv1_kernel=(5, 7, 7),
            inflate=fast_inflate,
        )
        expansion = self.fast.channels // (8 * fast_channels)
        joined = [fast_channels, *(fast_channels * expansion * 2**stage for stage in range(3))]
        self.slow = Trunk(
            depth=depth,
            in_channels=in_channels,
            base_channels=base_channels,
            inflate=slow_inflate,
            non_local=non_local,
            non_local_mode=non_local_mode,
            non_local_scale=non_local_scale,
            non_local_pool=non_local_pool,
            non_local_pool_first=non_local_pool_first,
            non_local_out_bias=non_local_out_bias,
            lateral_channels=[2 * channels for channels in joined],
        )
        self.lateral = nn.ModuleList(
            Lateral(channels, fusion_kernel, speed_ratio, norm=lateral_norm) for channels in joined
        )
        self.dropout = nn.Dropout(dropout_ratio)
        self.head = nn.Linear(self.slow.channels + self.fast.channels, num_classes)
        initialise(self, zero_init_residual=zero_init_residual)

    def slow_clip(self, x: Tensor) -> Tensor:
        num_slow = x.shape[2] // self.resample_rate
        if self.slow_frames == "stride":
            return x[:, :, :: self.resample_rate]
        return x[:, :, torch.linspace(0, x.shape[2] - 1, num_slow, device=x.device).long()]

    def forward(self, x: Tensor) -> Tensor:
        slow, fast = self.slow.first(self.slow_clip(x)), self.fast.first(x[:, :, :: self.fast_stride])
        for number in (2, 3, 4, 5):
            slow = self.slow.stage(number, torch.cat((slow, self.lateral[number - 2](fast)), dim=1))
            fast = self.fast.stage(number, fast)
        window = head_window(x, self.train_crop_px)
        return classified([slow, fast], self.dropout, self.head, head_pool=self.head_pool, window=window)


class Lateral(nn.Module):
    """[N, C, T, H, W] of the fast pathway -> [N, 2 C, T / speed_ratio, H, W] for the slow one."""

    def __init__(self, channels: int, fusion_kernel: int, speed_ratio: int, *, norm: bool) -> None:
        super().__init__()
        padding = (fusion_kernel // 2, 0, 0)
        self.conv = nn.Conv3d(channels, 2 * channels, (fusion_kernel, 1, 1), (speed_ratio, 1, 1), padding, bias=False)
        self.bn = nn.BatchNorm3d(2 * channels) if norm else nn.Identity()
        self.act = nn.ReLU(inplace=True) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out
