"""Several linear maps of one input.

B rows, T tokens, C model dim.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from golf.kernels.project_gemm import GRAIN, TILES, can_sum, sum_products

APART = "apart"  # a product a map
STACKED = "stacked"  # one product for all maps of the whole input


class Ways(NamedTuple):
    """How the products are computed."""

    forward: str  # APART or STACKED
    backward: str  # of the input's gradient: APART, each map's added to those before it, or a key of TILES


# The others have not been timed on a GPU yet.
FASTEST = Ways(APART, APART)


def plain_project(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return x[..., :W] w^T for every w (out, W) of `weights`, W at most C; x (B, T, C) has the weights' dtype."""
    return tuple(F.linear(x[..., : weight.shape[1]], weight) for weight in weights)


def fused_project(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return what `plain_project` does; the input's gradient is added up inside the matrix products.

    Autograd would write one gradient a map and add them in passes of their own, and fill a tensor of zeros for every
    map that reads a part of the channels. Not twice differentiable.
    """
    return project_by(FASTEST, x, weights)


def project_by(ways: Ways, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Do what `fused_project` does in the given ways; a benchmark compares them.

    Outputs of STACKED are slices of longer rows. A gradient that tiles cannot do, being of another dtype or of odd
    sizes, is computed APART.
    """
    aligned = [_with_whole_columns(weight, x.shape[-1]) for weight in weights]
    outputs: tuple[Tensor, ...] = _Project.apply(ways, x, *aligned)  # type: ignore[no-untyped-call]  # torch leaves it
    return outputs


def _with_whole_columns(weight: Tensor, width: int) -> Tensor:
    """Let a narrow map read a few more channels, of up to `width`, times zero: rows of odd length are read slowly."""
    missing = min(-weight.shape[1] % GRAIN, width - weight.shape[1])
    return F.pad(weight, (0, missing)) if missing else weight


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ways: Ways, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.way = ways.backward
        ctx.save_for_backward(x, *weights)
        return plain_project(x, weights) if ways.forward == APART else _stacked(x, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        flat = [gradient.flatten(0, -2) for gradient in gradients]  # (B T, out)
        by_weight = [
            g.mT @ x.flatten(0, -2)[:, : weight.shape[1]] if needed else None
            for g, weight, needed in zip(flat, weights, ctx.needs_input_grad[2:], strict=True)
        ]
        by_input = _input_gradient(flat, weights, x, ctx.way) if ctx.needs_input_grad[1] else None
        return (None, by_input, *by_weight)


def _stacked(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the maps' outputs, those of the whole input from one product."""
    whole = [weight for weight in weights if weight.shape[1] == x.shape[-1]]
    parts = iter(F.linear(x, torch.cat(whole)).split([len(weight) for weight in whole], dim=-1) if whole else ())
    return tuple(
        next(parts) if weight.shape[1] == x.shape[-1] else F.linear(x[..., : weight.shape[1]], weight)
        for weight in weights
    )


def _input_gradient(gradients: Sequence[Tensor], weights: Sequence[Tensor], x: Tensor, way: str) -> Tensor:
    """Return sum_i g_i w_i, like x (B, T, C)."""
    width = x.shape[-1]
    if way != APART and can_sum(gradients, width):
        total: Tensor = _sum_products(gradients, weights, width, way)
        return total.view_as(x)
    return _add_up(gradients, weights, width).view_as(x)


@torch.library.custom_op("golf::sum_products", mutates_args=())
def _sum_products(gradients: Sequence[Tensor], weights: Sequence[Tensor], width: int, way: str) -> Tensor:
    return sum_products(gradients, weights, width=width, tiles=TILES[way])


@_sum_products.register_fake
def _(gradients: Sequence[Tensor], weights: Sequence[Tensor], width: int, way: str) -> Tensor:
    return gradients[0].new_empty(gradients[0].shape[0], width)


def _add_up(gradients: Sequence[Tensor], weights: Sequence[Tensor], width: int) -> Tensor:
    """Add each map's product to those before; the widest map begins, so that nothing is filled with zeros."""
    order = sorted(range(len(weights)), key=lambda index: -weights[index].shape[1])
    first = order[0]
    total = torch.mm(gradients[first], weights[first])
    if total.shape[1] < width:
        total = F.pad(total, (0, width - total.shape[1]))
    for index in order[1:]:
        total[:, : weights[index].shape[1]].addmm_(gradients[index], weights[index])
    return total
