"""The non-local block: every position of a clip looks at every other.

Wang et al., "Non-local Neural Networks" (2018). The instantiations differ in how two positions are compared:

    embedded_gaussian   softmax of theta(x_i) . phi(x_j), over sqrt(channels) when ``scale`` is on
    dot_product         theta(x_i) . phi(x_j) / number of positions j
    gaussian            softmax of x_i . x_j, without embeddings

Keys and shapes are the same for the first two, whatever ``scale``: a checkpoint cannot tell them apart.
Sources: mmcv mmcv/cnn/bricks/non_local.py (pools what it has embedded), PySlowFast slowfast/models/nonlocal_helper.py
(pools before it embeds: ``pool_first``), GluonCV torch/model_zoo/action_recognition/non_local.py (does not pool); both
have a bias on the way out.
"""

from __future__ import annotations

from torch import Tensor, nn

MODES = ("embedded_gaussian", "dot_product", "gaussian")


class NonLocal(nn.Module):
    """[N, C, T, H, W] -> the same shape: x + bn(out(sum over j of weight_ij g(x_j))). ``pool``: positions j 1x2x2."""

    def __init__(
        self, channels: int, *, mode: str, scale: bool, pool: bool, pool_first: bool = False, out_bias: bool = False
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"non-local mode {mode!r}; there are {', '.join(MODES)}")
        self.mode = mode
        self.scale = scale and mode == "embedded_gaussian"
        self.pool_first = pool_first
        inner = channels // 2
        self.pool = nn.MaxPool3d((1, 2, 2)) if pool else nn.Identity()
        self.g = nn.Conv3d(channels, inner, 1)
        if mode != "gaussian":
            self.theta = nn.Conv3d(channels, inner, 1)
            self.phi = nn.Conv3d(channels, inner, 1)
        self.out = nn.Conv3d(inner, channels, 1, bias=out_bias)
        self.bn = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool_first:
            pooled = self.pool(x)
            g, phi = self.g(pooled), self.phi(pooled)
        else:
            g, phi = self.pool(self.g(x)), self.pool(x if self.mode == "gaussian" else self.phi(x))
        theta = x if self.mode == "gaussian" else self.theta(x)
        compared = theta.flatten(2).transpose(1, 2) @ phi.flatten(2)  # [N, positions i, positions j]
        if self.mode == "dot_product":
            weight = compared / compared.shape[-1]
        else:
            weight = (compared / theta.shape[1] ** 0.5 if self.scale else compared).softmax(dim=-1)
        looked_at = (weight @ g.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        out: Tensor = x + self.bn(self.out(looked_at))
        return out
