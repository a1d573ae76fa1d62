"""Sparse gate on the attention output (parameter-golf PR #1787; dense form: #1736)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf.model_config import GateConfig, ModelConfig


class AttentionGate(nn.Module):
    """y_h <- sigmoid(scale * w_h . n[:window]) * y_h, one number a head and token; 1/2 while w is zero."""

    def __init__(self, config: ModelConfig, part: GateConfig) -> None:
        super().__init__()
        self.scale = part.scale
        self.weight = nn.Parameter(torch.zeros(config.num_heads, part.window))

    def forward(self, y: Tensor, v: Tensor, n: Tensor) -> Tensor:
        """Return the gated heads y (B, T, H, D); n (B, T, C) is the normalized input of the attention."""
        gate = torch.sigmoid(
            self.scale * F.linear(n[..., : self.weight.shape[1]], self.weight.to(n.dtype))
        )  # (B, T, H)
        return y * gate[..., None]
