"""Soft-capped cross-entropy of a linear head, a chunk of rows at a time, so that the logits never exist at once.

After Liger Kernel (arXiv:2410.10989), whose forward makes the gradient; here the backward makes the logits again, which
leaves each token's loss its own gradient. The plain form is `softcapped_cross_entropy` of `F.linear`.
N rows (tokens), V vocabulary, C model dim.
"""

from typing import Any

import torch
from torch import Tensor

from golf.kernels.softcapped_ce import check_rows, empty_results, fill_gradient, fill_losses, save_for_backward


@torch.library.custom_op("golf::linear_softcapped_cross_entropy", mutates_args=())
def _head_op(x: Tensor, weight: Tensor, targets: Tensor, cap: float | None, chunk_rows: int) -> tuple[Tensor, Tensor]:
    """Return losses (N,) of the logits x (N, C) weight^T (C, V), and `fill_losses`' partition (N, 2); float32."""
    losses, partition = empty_results(x, targets)
    matrix, targets = weight.to(x.dtype), targets.contiguous()
    buffer = x.new_empty(min(chunk_rows, len(x)), len(weight))
    for chunk in _chunks(len(x), chunk_rows):
        logits = torch.mm(x[chunk], matrix.T, out=buffer[: len(x[chunk])])
        fill_losses(losses[chunk], partition[chunk], logits, targets[chunk], cap=cap)
    return losses, partition


@torch.library.custom_op("golf::linear_softcapped_cross_entropy_backward", mutates_args=())
def _head_gradients_op(
    grad_losses: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    partition: Tensor,
    cap: float | None,
    chunk_rows: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (N, C) and weight (V, C), in their dtypes; a chunk's gradient replaces its logits."""
    grad_x = x.new_empty(x.shape)
    grad_weight = x.new_zeros(weight.shape, dtype=torch.float32)
    matrix, targets = weight.to(x.dtype), targets.contiguous()
    buffer = x.new_empty(min(chunk_rows, len(x)), len(weight))
    for chunk in _chunks(len(x), chunk_rows):
        logits = torch.mm(x[chunk], matrix.T, out=buffer[: len(x[chunk])])
        fill_gradient(logits, grad_losses[chunk], logits, targets[chunk], partition[chunk], cap=cap)
        torch.mm(logits, matrix, out=grad_x[chunk])
        grad_weight += _float32_product(logits.T, x[chunk])
    return grad_x, grad_weight.to(weight.dtype)


_head_op.register_fake(lambda x, _, targets, *__: empty_results(x, targets))
_head_gradients_op.register_fake(lambda _, x, weight, *__: (x.new_empty(x.shape), weight.new_empty(weight.shape)))


def _head_backward(ctx: Any, grad_losses: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return *_head_gradients_op(grad_losses, *ctx.saved_tensors, *ctx.settings), None, None, None


_head_op.register_autograd(_head_backward, setup_context=save_for_backward)


def linear_softcapped_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, cap: float | None, chunk_rows: int
) -> Tensor:
    """Return softcapped_cross_entropy(F.linear(x, weight.to(x.dtype)), targets, cap=cap), (...) in float32.

    x (..., C), weight (V, C) of the same dtype or float32. No more than `chunk_rows` x V logits ever exist: the
    backward makes them again, one product more than is saved. The weight's gradient is added up in float32. Targets and
    derivatives as for `fused_softcapped_cross_entropy`; raises ValueError for other dtypes and shapes.
    """
    check_rows(x, targets, cap)
    if weight.dtype not in (x.dtype, torch.float32) or weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        given = f"{tuple(weight.shape)} {weight.dtype}"
        raise ValueError(f"weight is {given}; allowed are (V, {x.shape[-1]}) in {x.dtype} or torch.float32")
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; at least one row is needed")
    losses: Tensor = _head_op(x.flatten(0, -2), weight, targets.flatten(), cap, chunk_rows)[0]
    return losses.view(targets.shape)


def _chunks(rows: int, size: int) -> list[slice]:
    """Cut 0..rows into pieces of `size`, the last of which may reach beyond."""
    return [slice(start, start + size) for start in range(0, rows, size)]


def _float32_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b in float32 of matrices of any dtype; PyTorch has this as one product on CUDA alone."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()
