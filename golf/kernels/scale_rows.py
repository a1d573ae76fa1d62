"""A weight's rows times the gain of its output, cast to the dtype that multiplies: before every use of a gained matrix.

R rows (outputs), C columns.
"""

from typing import Any

import torch
from torch import Tensor

from golf.kernels.jit import ceil_div, jit, next_power_of_2, tl

TILE = 2048  # elements a program
WARPS = 4
MAX_COLUMNS = 2**14  # that a program holds


def plain_scale_rows(weight: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gain * weight as `dtype`, rounded once; weight (R, C) and gain (R,) are float32."""
    return (gain[:, None] * weight).to(dtype)


@jit
def _tile(rows: "Any", columns: "Any", ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> Any:
    """Return a program's rows, where their elements lie, 64 bits wide, and which of these there are."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    return row, at, (row < rows)[:, None] & (column < columns)[None, :]


@jit
def _scale_rows(
    weight: "Any",  # (R, C)
    gain: "Any",  # (R,)
    out: "Any",  # (R, C)
    rows: "Any",
    columns: "Any",
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    row, at, inside = _tile(rows, columns, ROWS, COLUMNS)
    scaled = tl.load(weight + at, mask=inside, other=0.0) * tl.load(gain + row, mask=row < rows, other=0.0)[:, None]
    tl.store(out + at, scaled.to(out.dtype.element_ty), mask=inside)


@jit
def _scale_rows_back(
    gradient: "Any",  # (R, C)
    weight: "Any",  # (R, C)
    gain: "Any",  # (R,)
    d_weight: "Any",  # (R, C)
    d_gain: "Any",  # (R,)
    rows: "Any",
    columns: "Any",
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    row, at, inside = _tile(rows, columns, ROWS, COLUMNS)
    g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(d_weight + at, g * tl.load(gain + row, mask=row < rows, other=0.0)[:, None], mask=inside)
    along = tl.sum(g * tl.load(weight + at, mask=inside, other=0.0), axis=1)
    tl.store(d_gain + row, along, mask=row < rows)


@torch.library.custom_op("golf::scale_rows", mutates_args=())
def _scale_op(weight: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor:
    out = weight.new_empty(weight.shape, dtype=dtype)
    if out.numel():
        _launch(_scale_rows, weight, weight.contiguous(), gain.contiguous(), out)
    return out


@torch.library.custom_op("golf::scale_rows_backward", mutates_args=())
def _scale_back_op(gradient: Tensor, weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight and of the gain, in float32."""
    d_weight, d_gain = weight.new_empty(weight.shape), gain.new_zeros(gain.shape)
    if weight.numel():
        tensors = gradient.contiguous(), weight.contiguous(), gain.contiguous(), d_weight, d_gain
        _launch(_scale_rows_back, weight, *tensors)
    return d_weight, d_gain


def _launch(kernel: Any, weight: Tensor, *tensors: Tensor) -> None:
    rows, columns = weight.shape
    width = next_power_of_2(columns)
    height = max(1, TILE // width)
    kernel[(ceil_div(rows, height),)](*tensors, rows, columns, height, width, num_warps=WARPS)


@_scale_op.register_fake
def _(weight: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.new_empty(weight.shape, dtype=dtype)


@_scale_back_op.register_fake
def _(gradient: Tensor, weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), gain.new_empty(gain.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, torch.dtype], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_scale_back_op(gradient, *ctx.saved_tensors), None


_scale_op.register_autograd(_differentiate, setup_context=_save)


def fused_scale_rows(weight: Tensor, gain: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `plain_scale_rows` does, to the bit, by one kernel each way instead of two and four.

    Not twice differentiable. Raises ValueError for other dtypes than float32 and for more than 2^14 columns.
    """
    if weight.dtype is not torch.float32 or gain.dtype is not torch.float32:
        raise ValueError(f"weight and gain are {weight.dtype} and {gain.dtype}; the kernel takes float32")
    if weight.dim() != 2 or gain.shape != weight.shape[:1] or weight.shape[1] > MAX_COLUMNS:
        raise ValueError(f"weight {tuple(weight.shape)}, gain {tuple(gain.shape)}: not (R, C <= {MAX_COLUMNS}), (R,)")
    scaled: Tensor = _scale_op(weight, gain, dtype)
    return scaled
