"""A product of matrices added to a residual stream, inside the product.

C channels of the stream, F of what is multiplied; x (..., C), y (..., F), weight (C, F).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_add_product(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return x + y weight^T. `x` is spent: whoever hands it over reads it no more, nor has autograd kept it."""
    return x + F.linear(y, weight)


def fused_add_product(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return what `plain_add_product` does, rounded once, in the place of `x`; not twice differentiable.

    So the product is neither written nor read again, and x's gradient is the sum's, unwritten. Where `can_take` says
    no, the sum is a tensor of its own. A plain norm keeps what it read: a table has both fused or neither.
    """
    if not can_take(x, y, weight):
        return plain_add_product(x, y, weight)
    total: Tensor = _AddProduct.apply(x, y, weight)  # type: ignore[no-untyped-call]  # torch leaves it
    return total


def can_take(x: Tensor, y: Tensor, weight: Tensor) -> bool:
    """Whether x + y weight^T may take the place of `x`: whole, of their dtype and shape, and no leaf and no view.

    Never where it is compiled: a compiler writes in place what it sees fit to.
    """
    if torch.compiler.is_compiling():
        return False
    fits = x.shape == (*y.shape[:-1], weight.shape[0]) and x.dtype == y.dtype == weight.dtype and x.is_contiguous()
    return fits and not x._is_view() and not (x.is_leaf and x.requires_grad)


def as_rows(x: Tensor) -> Tensor:
    """Return (..., C) as a matrix."""
    return x.flatten(0, -2) if x.dim() > 1 else x[None]


def add_in_place(x: Tensor, y: Tensor, weight: Tensor) -> None:
    """Add y weight^T to the contiguous `x`, unseen by autograd."""
    as_rows(x).addmm_(as_rows(y), weight.T)


class _AddProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, weight)
        add_in_place(x, y, weight)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None
        y, weight = ctx.saved_tensors
        _, of_y, of_weight = ctx.needs_input_grad
        rows = as_rows(gradient)
        by_y = (rows @ weight).view_as(y) if of_y else None
        return gradient, by_y, rows.mT @ as_rows(y) if of_weight else None
