"""U-Net skips: a decoder visit starts from a mix of the stream and a waiting encoder output."""

import torch
from torch import Tensor, nn


class Skips(nn.Module):
    """s = w_row * waiting;  x <- x + s, or with gates x <- s + sigmoid(g_row) * (x - s)."""

    def __init__(self, rows: int, model_dim: int, *, gated: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(rows, model_dim))
        self.gates = nn.Parameter(torch.zeros(rows, model_dim)) if gated else None

    def forward(self, x: Tensor, waiting: Tensor, row: int) -> Tensor:
        """Merge the encoder output `waiting` (B, T, C) into x (B, T, C)."""
        s = self.weights[row].to(x.dtype) * waiting
        if self.gates is None:
            return x + s
        return torch.lerp(s, x, torch.sigmoid(self.gates[row].to(x.dtype)))
