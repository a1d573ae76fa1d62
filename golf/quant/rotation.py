"""OptRot: rotate the rows of a matrix before it is rounded, and back after it is read.

The normalized Hadamard matrix H (entries +-R^-1/2) is symmetric and orthogonal, so H (H W) = W, and the error has the
norm it has in the rotated matrix. Rows are mixed, columns are not: a Hessian of the input stays what it is. In the run
that tried it, the codes packed far worse. From the thread of parameter-golf PR #401.
"""

import torch
from torch import Tensor


def can_rotate(rows: int) -> bool:
    """Whether `rows` is a power of two above 1, for which the matrix H is built."""
    return rows > 1 and rows & (rows - 1) == 0


def hadamard(weight: Tensor) -> Tensor:
    """Return H W (R, C), float32, by the fast Walsh-Hadamard transform; twice gives `weight` (R, C) back."""
    rows = len(weight)
    if not can_rotate(rows):
        raise ValueError(f"{rows} rows cannot be rotated: their number is not a power of two")
    mixed, half = weight.float(), 1
    while half < rows:
        upper, lower = mixed.reshape(rows // (2 * half), 2, half, -1).unbind(1)
        mixed = torch.stack([upper + lower, upper - lower], 1)
        half *= 2
    normalized: Tensor = mixed.reshape(rows, -1) / rows**0.5
    return normalized
