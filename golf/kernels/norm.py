"""Root-mean-square normalization without a weight (Zhang and Sennrich 2019, arXiv:1910.07467).

N rows (all leading dimensions together), C channels.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from golf.kernels.jit import ceil_div, jit, next_power_of_2, tl

EPS = torch.finfo(torch.float32).eps  # of float32 whatever the input: the record stacks' epsilon
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the fused forms, which compute in float32

# Tuned on an H200; what is near takes within 3 % of it.
TILE = 2048  # elements a program
WARPS = 4  # for a tile
MAX_WARPS = 16  # for a longer row


def rms_norm(x: Tensor) -> Tensor:
    """Divide by sqrt(mean(x^2) + eps) over the last dimension, computed in float32, in the dtype of `x`.

    The dtype is kept explicitly: from PyTorch 2.12 on, autocast would return float32.
    """
    return F.rms_norm(x, (x.shape[-1],), eps=EPS).to(x.dtype)


def plain_norm(x: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return scale * rms_norm(x), of the shape (..., C) and the dtype of `x`."""
    return rms_norm(x) * scale


def plain_stream_norm(x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the stream x (..., C) as it is, and scale * rms_norm(x).

    Whoever takes the stream from here lets both gradients of it be added up in this backward, not in a pass of its own.
    """
    return x, plain_norm(x, scale=scale)


class Tile(NamedTuple):
    """Whole rows that one program holds at a time."""

    rows: int
    channels: int  # C, rounded up to a power of two
    warps: int


def row_tile(channels: int, elements: int) -> Tile:
    """Return the tile of about `elements`: a power of two of rows, or one row that is longer, with warps to match."""
    padded = next_power_of_2(channels)
    return Tile(max(1, elements // padded), padded, min(MAX_WARPS, WARPS * max(1, padded // elements)))


@jit
def tile_at(
    tile: "Any", rows: "Any", CHANNELS: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr
) -> Any:
    """Return the tile's rows, its elements' offsets, 64 bits wide, and which of either there are."""
    row = (tile * TILE_ROWS + tl.arange(0, TILE_ROWS)).to(tl.int64)
    channel = tl.arange(0, TILE_CHANNELS)
    inside = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
    return row, row < rows, row[:, None] * CHANNELS + channel[None, :], inside


@jit
def load_tile(pointer: "Any", at: "Any", inside: "Any") -> Any:
    """Return a tile in float32, zero outside; all zeros without a pointer."""
    if pointer is None:
        tile = tl.zeros(at.shape, tl.float32)
    else:
        tile = tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)
    return tile


@jit
def tile_rstd(tile: "Any", CHANNELS: tl.constexpr, EPSILON: tl.constexpr) -> Any:
    """Return 1 / sqrt(mean(x^2) + eps) of each row; what is outside must be zero."""
    return tl.rsqrt(tl.sum(tile * tile, axis=1) / CHANNELS + EPSILON)


@jit
def tile_gradient(
    tile: "Any", factor: "Any", rstd: "Any", gradient: "Any", scale: "Any", CHANNELS: tl.constexpr
) -> Any:
    """Return the gradient of x from that of scale * rms_norm(x): rstd * scale * (g - n * mean(g * n)), n = rms_norm(x).

    n is `tile` times `factor`: x and rstd, or the scaled norm and 1 / scale.
    """
    along = tl.sum(gradient * tile, axis=1) / CHANNELS * factor * factor
    return (rstd * scale)[:, None] * (gradient - tile * along[:, None])


@jit
def _norm_forward(
    x: "Any",  # (N, C)
    out: "Any",  # (N, C)
    rstd: "Any",  # (N,)
    rows: "Any",
    scale: "Any",
    CHANNELS: tl.constexpr,
    EPSILON: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
) -> None:
    row, is_row, at, inside = tile_at(tl.program_id(0), rows, CHANNELS, TILE_ROWS, TILE_CHANNELS)
    tile = load_tile(x, at, inside)
    r = tile_rstd(tile, CHANNELS, EPSILON)
    tl.store(out + at, tile * (r * scale)[:, None], mask=inside)
    tl.store(rstd + row, r, mask=is_row)


@jit
def _norm_backward(
    normalized: "Any",  # (N, C)
    rstd: "Any",  # (N,)
    gradient: "Any",  # (N, C)
    other: "Any",  # (N, C), or None
    out: "Any",  # (N, C)
    rows: "Any",
    scale: "Any",
    CHANNELS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
) -> None:
    row, is_row, at, inside = tile_at(tl.program_id(0), rows, CHANNELS, TILE_ROWS, TILE_CHANNELS)
    r = tl.load(rstd + row, mask=is_row, other=0.0)
    n, g = load_tile(normalized, at, inside), load_tile(gradient, at, inside)
    through = tile_gradient(n, 1.0 / scale, r, g, scale, CHANNELS)
    tl.store(out + at, load_tile(other, at, inside) + through, mask=inside)


@torch.library.custom_op("golf::norm", mutates_args=())
def _norm(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return scale * rms_norm(x) and 1 / sqrt(mean(x^2) + eps), float32, a row."""
    x = x.contiguous()
    out, rstd = x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)
    if x.numel():
        tile = row_tile(x.shape[-1], TILE)
        grid = (ceil_div(rstd.numel(), tile.rows),)
        shape = (x.shape[-1], EPS, tile.rows, tile.channels)
        _norm_forward[grid](x, out, rstd, rstd.numel(), scale, *shape, num_warps=tile.warps)
    return out, rstd


@_norm.register_fake
def _(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("golf::norm_backward", mutates_args=())
def _norm_gradient(normalized: Tensor, rstd: Tensor, gradient: Tensor, other: Tensor | None, scale: float) -> Tensor:
    """Return the gradient of x (..., C) from that of `normalized`, plus `other`, which x got elsewhere.

    `normalized` is scale * rms_norm(x): it is kept for the products that read it, so x need not be kept as well.
    """
    normalized, gradient = normalized.contiguous(), gradient.contiguous()
    out = normalized.new_empty(normalized.shape)
    if out.numel():
        tile = row_tile(out.shape[-1], TILE)
        grid = (ceil_div(rstd.numel(), tile.rows),)
        tensors = (normalized, rstd, gradient, None if other is None else other.contiguous(), out)
        shape = (out.shape[-1], tile.rows, tile.channels)
        _norm_backward[grid](*tensors, rstd.numel(), scale, *shape, num_warps=tile.warps)
    return out


@_norm_gradient.register_fake
def _(normalized: Tensor, rstd: Tensor, gradient: Tensor, other: Tensor | None, scale: float) -> Tensor:
    return normalized.new_empty(normalized.shape)


class _StreamNorm(torch.autograd.Function):
    """The operator, and the stream handed on: an operator may not return what it was given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        normalized, rstd = _norm(x, scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(normalized, rstd)  # not x, which may be overwritten from here on
        ctx.scale = scale
        return x.detach(), normalized  # x itself would come out as a view, which `add_product` could not take

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_stream: Tensor | None, of_norm: Tensor | None) -> tuple[Tensor | None, None]:
        normalized, rstd = ctx.saved_tensors
        if of_norm is None:
            return of_stream, None
        return _norm_gradient(normalized, rstd, of_norm, of_stream, ctx.scale), None


def fused_norm(x: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return what `plain_norm` does, rounded once; raises and differentiates as `fused_stream_norm` does."""
    return fused_stream_norm(x, scale=scale)[1]


def fused_stream_norm(x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return what `plain_stream_norm` does, the norm rounded once; not twice differentiable.

    The backward reads the norm instead of x, so x may be overwritten. Raises ValueError for float64 and for scale 0.
    """
    check_dtype(x)
    if scale == 0:
        raise ValueError("the norm cannot be scaled by 0: its gradient is taken from what it gave")
    found: tuple[Tensor, Tensor] = _StreamNorm.apply(x, scale)  # type: ignore[no-untyped-call]  # torch leaves it
    return found


def check_dtype(x: Tensor) -> None:
    """Raise ValueError unless the fused forms compute in x's dtype."""
    if x.dtype not in DTYPES:
        raise ValueError(f"fused kernels take {', '.join(map(str, DTYPES))}, not {x.dtype}")
