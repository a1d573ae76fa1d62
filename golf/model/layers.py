"""The linear map that all stages share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golf.kernels.table import AddProductFunction


class Linear(nn.Linear):
    """Bias-free linear map whose float32 weight is cast to the input's dtype at use."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def acting_weight(self) -> Tensor:
        """Return the matrix (out, in) that multiplies the input."""
        return self.weight

    def weight_as(self, dtype: torch.dtype, gain: Tensor | None = None) -> Tensor:
        """Return the matrix (out, in) as `dtype`; a `gain` (out,) of the output is multiplied into its rows before.

        So the gain's gradient is a product of matrices, not a sum over tokens, and the unscaled output is never stored.
        """
        weight = self.acting_weight()
        return (weight if gain is None else gain[:, None] * weight).to(dtype)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """Map (..., in) to (..., out), times `gain` (out,) if there is one."""
        return F.linear(x, self.weight_as(x.dtype, gain))

    def add_to(self, stream: Tensor | None, x: Tensor, gain: Tensor, add: AddProductFunction) -> Tensor:
        """Return `stream` (..., out), which is spent, plus what `forward` gives, which comes alone without a stream."""
        return self(x, gain) if stream is None else add(stream, x, self.weight_as(x.dtype, gain))
