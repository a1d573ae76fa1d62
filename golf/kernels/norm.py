"""Root-mean-square normalization without a weight (Zhang and Sennrich 2019, arXiv:1910.07467)."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = torch.finfo(torch.float32).eps  # of float32 whatever the input: the record stacks' epsilon


def rms_norm(x: Tensor) -> Tensor:
    """Divide by sqrt(mean(x^2) + eps) over the last dimension, computed in float32, in the dtype of `x`.

    The dtype is kept explicitly: from PyTorch 2.12 on, autocast would return float32.
    """
    return F.rms_norm(x, (x.shape[-1],), eps=EPS).to(x.dtype)
