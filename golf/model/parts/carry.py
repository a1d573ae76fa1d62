"""Recurrent carry (parameter-golf PRs #1779 and #1801)."""

import torch
from torch import Tensor, nn

from golf.model.context import Context
from golf.model.plan import Visit
from golf.part_config import CarryConfig, LoopConfig

_TOGETHER = 3  # first passes that are added in one sum; one sum takes four streams


class Carry(nn.Module):
    """Later passes of looped layer l: x <- beta_l y + sum_j alpha_lj (first pass's output of layer j, detached)."""

    def __init__(self, loop: LoopConfig, part: CarryConfig) -> None:
        super().__init__()
        self.layers = range(loop.start, loop.end + 1)
        dtype = torch.bfloat16 if part.round_to_bfloat16 else torch.float32
        for name, values in (("recur_beta", part.beta), ("recur_alpha", part.alpha)):
            tensor = torch.tensor(values, dtype=dtype).float()
            if part.learn:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self.recur_beta: Tensor
        self.recur_alpha: Tensor

    def forward(self, y: Tensor, visit: Visit, context: Context) -> Tensor:
        """Return what goes on after `visit` gave y (B, T, C); first passes are remembered in the context."""
        if visit.layer not in self.layers:
            return y
        if visit.pass_index == 0:
            context.memory[_key(visit.layer)] = y.detach()
            return y
        row = visit.layer - self.layers.start
        first = [context.memory[_key(layer)] for layer in self.layers]
        kept = self.recur_beta[row]
        for start in range(0, len(first), _TOGETHER):
            taken = self.recur_alpha[row, start : start + _TOGETHER]
            weights = torch.cat([kept[None], taken])[None, :, None].expand(-1, -1, y.shape[-1])
            (y,) = context.kernels.mix((y, *first[start : start + _TOGETHER]), weights)
            kept = torch.ones_like(kept)
        return y


def _key(layer: int) -> str:
    return f"carry.{layer}"
