"""The video networks that torchvision has: R3D-18, MC3-18, R(2+1)D-18 and S3D, with our classifier on top.

Sources: Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition" (2018); Xie et al.,
"Rethinking Spatiotemporal Feature Learning" (2018); torchvision/models/video/resnet.py, s3d.py.
"""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

# arch -> the attribute that holds torchvision's classifier, its input channels
CLASSIFIERS = {"r3d_18": ("fc", 512), "mc3_18": ("fc", 512), "r2plus1d_18": ("fc", 512), "s3d": ("classifier", 1024)}


class TorchvisionVideo(nn.Module):
    """Normalised clips [N, 3, T, H, W] -> logits [N, num_classes].

    S3D pools 2 x 7 x 7 positions at stride 1 and means over what is left, so it wants 14 frames of 224 x 224 at least;
    its classifier is a 1x1x1 convolution there and comes after that mean here, which is the same sum.
    """

    def __init__(self, *, num_classes: int, arch: str, in_channels: int = 3, dropout_ratio: float = 0.0) -> None:
        super().__init__()
        if in_channels != 3:
            raise ValueError(f"{arch} takes 3 channels, not {in_channels}")
        attribute, channels = CLASSIFIERS[arch]
        self.trunk: nn.Module = getattr(torchvision.models.video, arch)(weights=None)
        setattr(self.trunk, attribute, nn.Identity())
        self.dropout = nn.Dropout(dropout_ratio)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.trunk(x)))
        return logits
