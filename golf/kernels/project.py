"""Several linear maps of one input.

B rows, T tokens, C model dim.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_project(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return x[..., :W] w^T for every w (out, W) of `weights`, W at most C; x (B, T, C) has the weights' dtype."""
    return tuple(F.linear(x[..., : weight.shape[1]], weight) for weight in weights)


def fused_project(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return what `plain_project` does; the input's gradient is added up inside the matrix products.

    Autograd would write one gradient a map and add them in passes of their own, and fill a tensor of zeros for every
    map that reads a part of the channels. Not twice differentiable.
    """
    outputs: tuple[Tensor, ...] = _Project.apply(x, *weights)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return outputs


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        return plain_project(x, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        flat = [gradient.flatten(0, -2) for gradient in gradients]  # (B T, out)
        by_weight = [
            g.mT @ x.flatten(0, -2)[:, : weight.shape[1]] if needed else None
            for g, weight, needed in zip(flat, weights, ctx.needs_input_grad[1:], strict=True)
        ]
        return (_input_gradient(flat, weights, x) if ctx.needs_input_grad[0] else None, *by_weight)


def _input_gradient(gradients: Sequence[Tensor], weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return sum_i g_i w_i, like x (B, T, C); the widest map begins, so that nothing is filled with zeros."""
    order = sorted(range(len(weights)), key=lambda index: -weights[index].shape[1])
    first = order[0]
    total = torch.mm(gradients[first], weights[first])
    if total.shape[1] < x.shape[-1]:
        total = F.pad(total, (0, x.shape[-1] - total.shape[1]))
    for index in order[1:]:
        total[:, : weights[index].shape[1]].addmm_(gradients[index], weights[index])
    return total.view_as(x)
