"""What the MLP does between its matrices."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf.kernels.leaky_relu_square import leaky_relu_square
from golf.model_config import ModelConfig


class LeakyReluSquare(nn.Module):
    """(max(z, 0) + slope min(z, 0))^2; slope 0 is ReLU squared (So et al. 2021, arXiv:2109.08668)."""

    def __init__(self, negative_slope: float) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, z: Tensor) -> Tensor:
        """Map (..., F) to (..., F)."""
        return leaky_relu_square(z, negative_slope=self.negative_slope)


class StarRelu(LeakyReluSquare):
    """s * (leaky ReLU)^2 + b with one s (ones at first) and b (zeros) a channel (arXiv:2210.13452)."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__(config.negative_slope)
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor) -> Tensor:
        """Map (..., F) to (..., F)."""
        return self.scale.to(z.dtype) * super().forward(z) + self.bias.to(z.dtype)


def activation(config: ModelConfig, layer: int) -> Callable[[Tensor], Tensor]:
    """Return the function between the matrices; of a gated MLP, the gate's (SwiGLU: Shazeer 2020, arXiv:2002.05202)."""
    if config.activation == "swiglu":
        return F.silu
    if config.activation == "star_relu":
        return StarRelu(config, config.hidden_dim(layer))
    return LeakyReluSquare(0.0 if config.gated_mlp else config.negative_slope)  # relu_square_gated knows no slope
