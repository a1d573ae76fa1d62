"""Exclusive self-attention: a token's output may not point along its own value (parameter-golf PR #287)."""

import torch.nn.functional as F
from torch import Tensor, nn


class ExclusiveSelfAttention(nn.Module):
    """y <- y - (y . v^) v^ with v^ = v / |v| of the same token and key/value head, in float32."""

    def forward(self, y: Tensor, v: Tensor, n: Tensor, q: Tensor) -> Tensor:
        """Return y (B, T, H, D) without its component along v (B, T, K, D); float32."""
        grouped: Tensor = y.float().unflatten(2, (v.shape[2], -1))  # (B, T, K, H/K, D)
        direction = F.normalize(v.float(), dim=-1, eps=1e-12)[:, :, :, None, :]
        along = (grouped * direction).sum(-1, keepdim=True)
        return (grouped - along * direction).flatten(2, 3)
