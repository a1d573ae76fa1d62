"""The linear map that all stages share."""

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """Bias-free linear map whose float32 weight is cast to the input's dtype at use."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def acting_weight(self) -> Tensor:
        """Return the matrix (out, in) that multiplies the input."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(x, self.acting_weight().to(x.dtype))
