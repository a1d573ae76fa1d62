"""Frozen recurrent carry (parameter-golf PRs #1779 and #1801)."""

import torch
from torch import Tensor, nn

from golf.model.plan import Visit
from golf.model_config import CarryConfig, LoopConfig


class Carry(nn.Module):
    """Later passes of looped layer l: x <- beta_l y + sum_j alpha_lj (first pass's output of layer j, detached)."""

    def __init__(self, loop: LoopConfig, part: CarryConfig) -> None:
        super().__init__()
        self.layers = range(loop.start, loop.end + 1)
        dtype = torch.bfloat16 if part.round_to_bfloat16 else torch.float32
        self.register_buffer("recur_beta", torch.tensor(part.beta, dtype=dtype).float())
        self.register_buffer("recur_alpha", torch.tensor(part.alpha, dtype=dtype).float())
        self.recur_beta: Tensor
        self.recur_alpha: Tensor

    def forward(self, y: Tensor, visit: Visit, remembered: dict[int, Tensor]) -> Tensor:
        """Return what goes on after `visit` gave y (B, T, C); first passes fill `remembered`, a forward's own."""
        if visit.layer not in self.layers:
            return y
        if visit.pass_index == 0:
            remembered[visit.layer] = y.detach()
            return y
        row = visit.layer - self.layers.start
        alpha = self.recur_alpha[row].to(y.dtype)
        carried = torch.stack([a * remembered[layer] for a, layer in zip(alpha, self.layers, strict=True)]).sum(0)
        return self.recur_beta[row].to(y.dtype) * y + carried
