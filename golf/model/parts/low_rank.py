"""Matrices as products of two thin ones: a low-rank MLP, and a correction of its own for every pass of a loop."""

from torch import Tensor, nn

from golf.model.hooks import Hooks
from golf.model.layers import Linear


class LowRank(nn.Module):
    """x -> up(down(x)), rank r between them."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, tap: str) -> None:
        super().__init__()
        self.tap = tap
        self.down = Linear(in_features, rank)
        self.up = Linear(rank, out_features)

    def forward(self, x: Tensor, hooks: Hooks, gain: Tensor | None = None) -> Tensor:
        """Map (..., in) to (..., out), times `gain` (out,) if there is one."""
        hooks.show(self.tap, x)
        thin = self.down(x)
        hooks.show(f"{self.tap}.up", thin)
        wide: Tensor = self.up(thin, gain)
        return wide


class PassCorrections(nn.ModuleList):
    """One low-rank map for each pass over a looped layer, silent at first (per-pass LoRA)."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, passes: int, tap: str) -> None:
        super().__init__(LowRank(in_features, out_features, rank, tap=f"{tap}.{index}") for index in range(passes))
