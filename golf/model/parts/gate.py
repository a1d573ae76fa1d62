"""Gates on the attention output (parameter-golf PR #1787; dense form: #1736, output gate: #1667)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf.model_config import ModelConfig
from golf.part_config import GateConfig


class AttentionGate(nn.Module):
    """y_h <- gain * sigmoid(scale * w_h . z[:window] + b_h) * y_h, one number a head and token; w starts near zero.

    z is the attention's normalized input, or the projected query before it is normalized.
    """

    def __init__(self, config: ModelConfig, part: GateConfig) -> None:
        super().__init__()
        self.part = part
        self.weight = nn.Parameter(torch.zeros(config.num_heads, part.window))
        self.bias = None if part.bias is None else nn.Parameter(torch.full((config.num_heads,), part.bias))

    def forward(self, y: Tensor, v: Tensor, n: Tensor, q: Tensor) -> Tensor:
        """Return the gated heads y (B, T, H, D); n and q (B, T, C) are the attention's input and projected query."""
        z = (n if self.part.source == "input" else q)[..., : self.part.window]
        logits = self.part.scale * F.linear(z, self.weight.to(z.dtype))  # (B, T, H)
        if self.bias is not None:
            logits = logits + self.bias.to(z.dtype)
        return y * (self.part.gain * torch.sigmoid(logits))[..., None]
