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

# Not yet tuned on a GPU.
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
def tile_gradient(x: "Any", rstd: "Any", gradient: "Any", scale: "Any", CHANNELS: tl.constexpr) -> Any:
    """Return the gradient of x from that of scale * rms_norm(x): rstd * scale * (g - x * rstd^2 * mean(g * x))."""
    along = tl.sum(gradient * x, axis=1) / CHANNELS * rstd * rstd
    return (rstd * scale)[:, None] * (gradient - x * along[:, None])


@jit
def _norm_forward(
    x: "Any",  # (N, C)
    branch: "Any",  # (N, C), or None: nothing is added to x
    total: "Any",  # (N, C): x + branch
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
    if branch is not None:
        rounded = (tile + load_tile(branch, at, inside)).to(x.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        tile = rounded.to(tl.float32)
    r = tile_rstd(tile, CHANNELS, EPSILON)
    tl.store(out + at, tile * (r * scale)[:, None], mask=inside)
    tl.store(rstd + row, r, mask=is_row)


@jit
def _norm_backward(
    x: "Any",  # (N, C)
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
    through = tile_gradient(load_tile(x, at, inside), r, load_tile(gradient, at, inside), scale, CHANNELS)
    tl.store(out + at, load_tile(other, at, inside) + through, mask=inside)


def launch_norm(
    x: Tensor, out: Tensor, rstd: Tensor, scale: float, *, branch: Tensor | None = None, total: Tensor | None = None
) -> None:
    """Write scale * rms_norm(x) and, a row, 1 / sqrt(mean(x^2) + eps); with a `branch`, of x + branch, the `total`.

    All (..., C) and contiguous, `rstd` (...) float32.
    """
    if x.numel() == 0:
        return
    tile = row_tile(x.shape[-1], TILE)
    grid = (ceil_div(rstd.numel(), tile.rows),)
    sizes = (x.shape[-1], EPS, tile.rows, tile.channels)
    _norm_forward[grid](x, branch, total, out, rstd, rstd.numel(), scale, *sizes, num_warps=tile.warps)


@torch.library.custom_op("golf::norm", mutates_args=())
def _norm(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return scale * rms_norm(x) and 1 / sqrt(mean(x^2) + eps), float32, a row."""
    out, rstd = x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)
    launch_norm(x.contiguous(), out, rstd, scale)
    return out, rstd


@_norm.register_fake
def _(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("golf::norm_backward", mutates_args=())
def norm_backward(x: Tensor, rstd: Tensor, gradient: Tensor, other: Tensor | None, scale: float) -> Tensor:
    """Return the gradient of x (..., C) from that of scale * rms_norm(x), plus `other`, which x got elsewhere."""
    x, gradient = x.contiguous(), gradient.contiguous()
    out = x.new_empty(x.shape)
    if x.numel():
        tile = row_tile(x.shape[-1], TILE)
        grid = (ceil_div(rstd.numel(), tile.rows),)
        tensors = (x, rstd, gradient, None if other is None else other.contiguous(), out)
        shape = (x.shape[-1], tile.rows, tile.channels)
        _norm_backward[grid](*tensors, rstd.numel(), scale, *shape, num_warps=tile.warps)
    return out


@norm_backward.register_fake
def _(x: Tensor, rstd: Tensor, gradient: Tensor, other: Tensor | None, scale: float) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])
    ctx.scale = inputs[1]


def _differentiate(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, None]:
    if gradient is None:
        return None, None
    x, rstd = ctx.saved_tensors
    return norm_backward(x, rstd, gradient, None, ctx.scale), None


_norm.register_autograd(_differentiate, setup_context=_save)


def fused_norm(x: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return what `plain_norm` does, rounded once; not twice differentiable. Raises ValueError for float64."""
    check_dtype(x)
    out: Tensor = _norm(x, scale)[0]
    return out


def check_dtype(x: Tensor) -> None:
    """Raise ValueError unless the fused forms compute in x's dtype."""
    if x.dtype not in DTYPES:
        raise ValueError(f"fused kernels take {', '.join(map(str, DTYPES))}, not {x.dtype}")
