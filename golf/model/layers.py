"""The linear map that all stages share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf.kernels.table import Kernels


class Linear(nn.Linear):
    """Bias-free linear map whose float32 weight is cast to the input's dtype at use."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def acting_weight(self) -> Tensor:
        """Return the matrix (out, in) that multiplies the input."""
        return self.weight

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix (out, in) as `dtype`."""
        return self.acting_weight().to(dtype)

    def gained_weight(self, gain: Tensor, dtype: torch.dtype, kernels: Kernels) -> Tensor:
        """Return the matrix (out, in) as `dtype`, the `gain` (out,) of the output multiplied into its rows before.

        So the gain's gradient is a product of matrices, not a sum over tokens, and the unscaled output is never stored.
        """
        return kernels.scale_rows(self.acting_weight(), gain, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(x, self.weight_as(x.dtype))

    def add_to(self, stream: Tensor | None, x: Tensor, gain: Tensor, kernels: Kernels) -> Tensor:
        """Return `stream` (..., out), which is spent, plus `gain` (out,) times what `forward` gives, or that alone."""
        weight = self.gained_weight(gain, x.dtype, kernels)
        return F.linear(x, weight) if stream is None else kernels.add_product(stream, x, weight)
