"""Where in a shared band of layers the stream is ("Frugendorff" weight sharing, parameter-golf PR #401's thread)."""

import torch
from torch import Tensor, nn

from golf.model.context import Context
from golf.model.plan import Visit
from golf.model_config import ModelConfig
from golf.part_config import ShareConfig


class LoopPositions(nn.Module):
    """x <- x + p_k at the beginning of loop k, so that one layer can tell its passes apart; the p are orthogonal."""

    def __init__(self, config: ModelConfig, part: ShareConfig) -> None:
        super().__init__()
        self.first_layer = part.start
        self.std = part.position_std
        self.positions = nn.Parameter(torch.zeros(part.loops, config.model_dim))

    def forward(self, x: Tensor, visit: Visit, context: Context) -> Tensor:
        """Return the stream (B, T, C) that `visit` reads."""
        if visit.layer != self.first_layer:
            return x
        return x + self.positions[visit.pass_index].to(x.dtype)
