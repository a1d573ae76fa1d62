"""Ternary weights with a straight-through gradient (BitNet b1.58: Ma et al. 2024, arXiv:2402.17764)."""

import torch
from torch import Tensor

from golf.model.layers import Linear
from golf.model_config import ModelConfig
from golf.part_config import TernaryConfig


class TernaryLinear(Linear):
    """A linear map that acts with the ternary form of its weight."""

    def __init__(self, in_features: int, out_features: int, part: TernaryConfig) -> None:
        super().__init__(in_features, out_features)
        self.group = part.group

    def acting_weight(self) -> Tensor:
        """Return the ternary weight, whose gradient is handed to the weight as it is."""
        codes, scale = ternarize(self.weight.detach(), self.group)
        ternary = expand_ternary(codes, scale)
        zero: Tensor = self.weight - self.weight.detach()  # exactly, but with a gradient
        return zero + ternary


def matrix(config: ModelConfig, in_features: int, out_features: int) -> Linear:
    """Build a matrix of attention or MLP as the config wants it."""
    if config.ternary:
        return TernaryLinear(in_features, out_features, config.ternary)
    return Linear(in_features, out_features)


def ternarize(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return codes (R, C) int8 in {-1, 0, 1} and scales (R, C/group), the mean magnitude of each group of a row.

    q = clip(round(w / scale), -1, 1); a group of zeros has codes and scale 0. Scales are float32 values that float16
    holds, as an artifact stores them: what comes back from one acts to the bit as what was trained.
    """
    grouped = weight.unflatten(-1, (-1, group))
    scale = grouped.abs().mean(-1).half().to(weight.dtype)
    safe = torch.where(scale > 0, scale, 1.0)
    codes = (grouped / safe[..., None]).round().clamp(-1, 1)
    return codes.flatten(-2).to(torch.int8), scale


def expand_ternary(codes: Tensor, scale: Tensor) -> Tensor:
    """Return codes * scale, (R, C) in the dtype of `scale` (R, groups)."""
    grouped: Tensor = codes.unflatten(-1, (scale.shape[-1], -1)).to(scale.dtype)
    return (grouped * scale[..., None]).flatten(-2)
