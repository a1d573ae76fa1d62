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
        return x if visit.skip_row is None else self.merge(x, context.waiting.pop(), visit.skip_row)

    def merge(self, x: Tensor, waiting: Tensor, row: int) -> Tensor:
        """Return the mix of x and `waiting` (B, T, C)."""
        s = self.weights[row].to(x.dtype) * waiting
        if self.gates is None:
            return x + s
        return torch.lerp(s, x, torch.sigmoid(self.gates[row].to(x.dtype)))


def let_wait(x: Tensor, visit: Visit, context: Context) -> Tensor:
    """Keep an encoder visit's output x (B, T, C) for a decoder visit."""
    if visit.pushes:
        context.waiting.append(x)
    return x
