"""Matrices as products of two thin ones: a low-rank MLP, and a correction of its own for every pass of a loop."""

from torch import Tensor, nn

from golf.kernels.table import Kernels
from golf.model.hooks import Hooks
from golf.model.layers import Linear


class LowRank(nn.Module):
    """x -> up(down(x)), rank r between them."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, tap: str) -> None:
        super().__init__()
        self.tap = tap
        self.down = Linear(in_features, rank)
        self.up = Linear(rank, out_features)

    def forward(self, x: Tensor, hooks: Hooks) -> Tensor:
        """Map (..., in) to (..., out)."""
        wide: Tensor = self.up(self._thin(x, hooks))
        return wide

    def add_to(self, stream: Tensor | None, x: Tensor, gain: Tensor, kernels: Kernels, *, hooks: Hooks) -> Tensor:
        """Return `stream` (..., out), which is spent, plus `gain` (out,) times what `forward` gives, or that alone."""
        return self.up.add_to(stream, self._thin(x, hooks), gain, kernels)

    def _thin(self, x: Tensor, hooks: Hooks) -> Tensor:
        """Return what lies between the matrices, (..., r)."""
        hooks.show(self.tap, x)
        thin: Tensor = self.down(x)
        hooks.show(f"{self.tap}.up", thin)
        return thin


class PassCorrections(nn.ModuleList):
    """One low-rank map for each pass over a looped layer, silent at first (per-pass LoRA)."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, passes: int, tap: str) -> None:
        super().__init__(LowRank(in_features, out_features, rank, tap=f"{tap}.{index}") for index in range(passes))

    def of(self, pass_index: int) -> LowRank:
        """Return the map of a pass."""
        correction = self[pass_index]
        assert isinstance(correction, LowRank)
        return correction
