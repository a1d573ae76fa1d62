"""Squared leaky ReLU, the record stacks' MLP activation (squared ReLU: Primer, arXiv:2109.08668)."""

import torch.nn.functional as F
from torch import Tensor


def leaky_relu_square(z: Tensor, *, negative_slope: float) -> Tensor:
    """Return z^2 where z > 0 and (negative_slope * z)^2 elsewhere; the derivative there is 2 * negative_slope^2 * z."""
    return F.leaky_relu(z, negative_slope).square()
