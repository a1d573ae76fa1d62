"""U-Net skips: a decoder visit starts from a mix of the stream and a waiting encoder output."""

import torch
from torch import Tensor, nn

from golf.model.context import Context
from golf.model.plan import Visit


class Skips(nn.Module):
    """s = w_row * waiting;  x <- x + s, or with gates x <- s + sigmoid(g_row) * (x - s)."""

    def __init__(self, rows: int, model_dim: int, *, gated: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(rows, model_dim))
        self.gates = nn.Parameter(torch.zeros(rows, model_dim)) if gated else None

    def forward(self, x: Tensor, visit: Visit, context: Context) -> Tensor:
        """Merge the newest waiting output into the stream x (B, T, C) that a decoder visit reads."""
        if visit.skip_row is None:
            return x
        return context.kernels.mix((x, context.waiting.pop()), self.shares(visit.skip_row)[None])[0]

    def shares(self, row: int) -> Tensor:
        """Return how much of x and of the waiting output goes on, (2, C)."""
        weight = self.weights[row]
        if self.gates is None:
            return torch.stack([torch.ones_like(weight), weight])
        kept = torch.sigmoid(self.gates[row])
        return torch.stack([kept, (1 - kept) * weight])


def let_wait(x: Tensor, visit: Visit, context: Context) -> Tensor:
    """Keep an encoder visit's output x (B, T, C) for a decoder visit."""
    if visit.pushes:
        context.waiting.append(x)
    return x
