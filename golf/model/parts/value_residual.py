"""What later layers take from the first one (value residual learning: Zhou et al. 2024, arXiv:2410.17897).

Three published forms: mix (parameter-golf PR #549), add (#1019), and input (#413, "VRL"), which mixes what attention
reads instead of its values.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from golf.model.context import Context
from golf.model.plan import Visit

_VALUES, _OUTPUT = "value_residual.values", "value_residual.output"


class RememberValues(nn.Module):
    """Keep the first layer's values of this forward; its later passes change nothing."""

    def forward(self, v: Tensor, context: Context) -> Tensor:
        """Return the values v (B, T, K, D)."""
        context.memory.setdefault(_VALUES, v)
        return v


class MixFirstValues(nn.Module):
    """v <- a v_first + b v with a = b = 1/2 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.5, 0.5]))

    def forward(self, v: Tensor, context: Context) -> Tensor:
        """Return the mixed values v (B, T, K, D)."""
        a, b = self.weights.to(v.dtype)
        mixed: Tensor = a * context.memory[_VALUES] + b * v
        return mixed


class AddFirstValues(nn.Module):
    """v <- v + sigmoid(a) v_first with a = 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))

    def forward(self, v: Tensor, context: Context) -> Tensor:
        """Return the values v (B, T, K, D) with a share of the first layer's added."""
        return v + torch.sigmoid(self.weight.to(v.dtype)) * context.memory[_VALUES]


class MixFirstOutput(nn.Module):
    """x <- sigmoid(a) x + (1 - sigmoid(a)) (output of layer 0), for attention alone; a = 1/2 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Return what attention reads (B, T, C)."""
        return torch.lerp(context.memory[_OUTPUT], x, torch.sigmoid(self.weight.to(x.dtype)))


def remember_output(x: Tensor, visit: Visit, context: Context) -> Tensor:
    """Keep the first output x (B, T, C) of layer 0 in this forward."""
    if visit.layer == 0:
        context.memory.setdefault(_OUTPUT, x)
    return x


def value_part(form: Literal["mix", "add", "input"], layer: int) -> nn.Module | None:
    """Return what happens to the values of `layer`, if anything does."""
    if form == "input":
        return None
    if layer == 0:
        return RememberValues()
    return MixFirstValues() if form == "mix" else AddFirstValues()
