"""The Triton kernels of golf/kernels/turn_heads.py, and their launches.

B rows, T tokens, H heads, D head size, R turned pairs (2R <= D); N = B * T.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from golf.kernels.column_sums import column_sums
from golf.kernels.jit import ceil_div, jit, next_power_of_2, tl
from golf.kernels.norm import EPS

# Tuned on an H200; what is near takes within 3 % of it.
FORWARD_TILE = 2048  # channels a program
BACKWARD_TILE = 1024  # channels a program and turn of its loop
BACKWARD_PROGRAMS = 8 * 132  # at most, if H divides it; each writes one row of partial sums
WARPS = 4

MAX_GRADIENTS = 2  # of the same heads, that the backward's kernel adds up: those of a group's two query heads
MAX_GRADIENTS_OF_V = 3  # and of who else reads the values


def as_tokens(heads: Tensor) -> Tensor:
    """Flatten heads (B, T, H, D) to (B*T, H, D) whose tokens are contiguous each, one stride apart; copy if need be."""
    flat = heads.flatten(0, 1)
    return flat if flat.stride()[1:] == (flat.shape[2], 1) else flat.contiguous()


@jit
def _pairs(SIZE: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr) -> Any:
    """Deal a head's channels into two tiles, so that the two of a turned pair meet in one thread; the rest is halved.

    Returns the channels of either and which of them there are; (1, PAIRS) all.
    """
    rest: tl.constexpr = (SIZE - 2 * HALF + 1) // 2
    pair = tl.arange(0, PAIRS)[None, :]
    first = tl.where(pair < HALF, pair, pair + HALF)
    second = tl.where(pair < HALF, pair + HALF, pair + (HALF + rest))
    return first, second, pair < HALF + rest, second < SIZE


@jit
def _angles(
    cos: "Any", sin: "Any", token: "Any", valid: "Any", HALF: tl.constexpr, PAIRS: tl.constexpr, dtype: "Any"
) -> Any:
    """Load cosines and sines (ROWS, PAIRS) of positions (ROWS, 1), rounded to dtype; 1 and 0 where nothing turns."""
    pair = tl.arange(0, PAIRS)[None, :]
    offset = token.to(tl.int64) * HALF + pair
    turned = valid & (pair < HALF)
    c = tl.load(cos + offset, mask=turned, other=1.0)
    s = tl.load(sin + offset, mask=turned, other=0.0)
    return c.to(dtype).to(tl.float32), s.to(dtype).to(tl.float32)


@jit
def _turn(
    heads: "Any",  # (N, H, D), N = B * T
    cos: "Any",  # (T, R)
    sin: "Any",
    gain: "Any",  # (H,) or None
    out: "Any",  # (N, H, D)
    rows: "Any",  # N * H
    stride: "Any",  # of a token in `heads`
    tokens: "Any",  # T
    EPS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    first, second, has_first, has_second = _pairs(SIZE, HALF, PAIRS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    valid = row < rows
    token, head = row // HEADS, row % HEADS
    source = heads + token.to(tl.int64) * stride + head * SIZE
    u = tl.load(source + first, mask=valid & has_first, other=0.0).to(tl.float32)
    w = tl.load(source + second, mask=valid & has_second, other=0.0).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty
    c, s = _angles(cos, sin, token % tokens, valid, HALF, PAIRS, dtype)
    factor = tl.full((ROWS, 1), 1.0, tl.float32)
    if NORMALIZE:
        factor = tl.rsqrt(tl.sum(u * u + w * w, axis=1, keep_dims=True) / SIZE + EPS)
    if gain is not None:
        factor *= tl.load(gain + head, mask=valid, other=0.0).to(dtype).to(tl.float32)
    target = out + row.to(tl.int64) * SIZE
    tl.store(target + first, ((u * c + w * s) * factor).to(dtype), mask=valid & has_first)
    tl.store(target + second, ((w * c - u * s) * factor).to(dtype), mask=valid & has_second)


@jit
def _sum_of(
    gradients: "Any", strides: "Any", token: "Any", start: "Any", channel: "Any", inside: "Any", COUNT: tl.constexpr
) -> Any:
    """Add up a tile of each gradient in float32; the first is there, of the others what is not None."""
    token = token.to(tl.int64)
    total = tl.load(gradients[0] + token * strides[0] + start + channel, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(1, COUNT):
        if gradients[k] is not None:
            more = tl.load(gradients[k] + token * strides[k] + start + channel, mask=inside, other=0.0)
            total += more.to(tl.float32)
    return total


@jit
def _turn_back(
    g0: "Any",  # (N, H, D), gradients of the same heads; None: there are fewer
    g1: "Any",
    heads: "Any",  # (N, H, D)
    cos: "Any",  # (T, R)
    sin: "Any",
    gain: "Any",  # (H,) or None
    d_heads: "Any",  # (N, H, D)
    partial: "Any",  # (programs * ROWS,), entry i of head i % H
    v0: "Any",  # (N, H, D), v's gradients; None: there are fewer
    v1: "Any",
    v2: "Any",
    d_v: "Any",  # (N, H, D), their sum
    rows: "Any",  # N * H
    g0_stride: "Any",  # of a token, as all strides
    g1_stride: "Any",
    stride: "Any",
    v0_stride: "Any",
    v1_stride: "Any",
    v2_stride: "Any",
    result_stride: "Any",  # in `d_heads` and `d_v`
    tokens: "Any",  # T
    EPS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Walk the heads in steps that are a multiple of H rows: a program's i-th row stays with one head.

    Keys take the gradients of the values along, which have as many heads.
    """
    incoming, strides = (g0, g1), (g0_stride, g1_stride)
    of_v, strides_of_v = (v0, v1, v2), (v0_stride, v1_stride, v2_stride)
    first, second, has_first, has_second = _pairs(SIZE, HALF, PAIRS)
    dtype: tl.constexpr = d_heads.dtype.element_ty
    lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    head = lane % HEADS
    factor = tl.full((ROWS, 1), 1.0, tl.float32)
    if gain is not None:
        factor = tl.load(gain + head).to(dtype).to(tl.float32)
    total = tl.zeros((ROWS, 1), tl.float32)
    for start in range(0, rows - tl.program_id(0) * ROWS, tl.num_programs(0) * ROWS):
        row = lane + start
        valid = row < rows
        token = row // HEADS
        source = heads + token.to(tl.int64) * stride + head * SIZE
        g_u = _sum_of(incoming, strides, token, head * SIZE, first, valid & has_first, 2)
        g_w = _sum_of(incoming, strides, token, head * SIZE, second, valid & has_second, 2)
        u = tl.load(source + first, mask=valid & has_first, other=0.0).to(tl.float32)
        w = tl.load(source + second, mask=valid & has_second, other=0.0).to(tl.float32)
        c, s = _angles(cos, sin, token % tokens, valid, HALF, PAIRS, dtype)
        d_u = g_u * c - g_w * s
        d_w = g_w * c + g_u * s
        along = tl.sum(d_u * u + d_w * w, axis=1, keep_dims=True)
        scale = factor
        if NORMALIZE:  # with n = x r, r = 1/|x|: d_x = r (d_n - n mean(d_n n))
            rstd = tl.rsqrt(tl.sum(u * u + w * w, axis=1, keep_dims=True) / SIZE + EPS)
            shrink = along * rstd * rstd / SIZE
            d_u -= u * shrink
            d_w -= w * shrink
            along *= rstd
            scale = factor * rstd
        total += along
        result = token.to(tl.int64) * result_stride + head * SIZE
        tl.store(d_heads + result + first, (d_u * scale).to(dtype), mask=valid & has_first)
        tl.store(d_heads + result + second, (d_w * scale).to(dtype), mask=valid & has_second)
        if d_v is not None:
            channel = tl.arange(0, 2 * PAIRS)[None, :]
            inside = valid & (channel < SIZE)
            total_v = _sum_of(of_v, strides_of_v, token, head * SIZE, channel, inside, 3)
            tl.store(d_v + result + channel, total_v.to(dtype), mask=inside)
    if gain is not None:
        tl.store(partial + lane, total)


def launch_turn(
    heads: Tensor, tables: tuple[Tensor, Tensor], out: Tensor, gain: Tensor | None, *, normalize: bool
) -> None:
    """Write the turned `heads` (B, T, H, D) into the contiguous `out`; tables of cosines and sines (T, 1, R)."""
    rows, tokens = heads.shape[:3].numel(), heads.shape[1]
    shape = _constants(heads, tables[0], tile=FORWARD_TILE, normalize=normalize)
    tensors = as_tokens(heads), tables[0].contiguous(), tables[1].contiguous(), _contiguous(gain)
    grid = ceil_div(rows, shape["ROWS"])
    _turn[grid,](*tensors, out, rows, tensors[0].stride(0), tokens, **shape, num_warps=WARPS)


def launch_turn_back(
    gradients: Sequence[Tensor],
    heads: Tensor,
    tables: tuple[Tensor, Tensor],
    result: Tensor,
    gain: Tensor | None,
    *,
    normalize: bool,
    of_v: Sequence[Tensor] = (),
    d_v: Tensor | None = None,
) -> Tensor | None:
    """Write the gradient of `heads` into `result`, the sum of v's, `of_v`, into `d_v`; return the gain's (H,), float32.

    That of the turned heads is the sum of one or more `gradients`; `result` and `d_v` may be heads of longer rows, of
    one length. The kernel adds up `MAX_GRADIENTS`, and `MAX_GRADIENTS_OF_V` of v, in float32; if there are more, the
    last ones are added up before, in float32 too and rounded once.
    """
    cos, sin, gain = tables[0].contiguous(), tables[1].contiguous(), _contiguous(gain)
    rows, (tokens, count) = heads.shape[:3].numel(), heads.shape[1:3]
    shape = _constants(heads, cos, tile=BACKWARD_TILE, normalize=normalize)
    programs = ceil_div(min(ceil_div(rows, shape["ROWS"]), BACKWARD_PROGRAMS), count) * count
    partial = heads.new_empty(0 if gain is None else programs * shape["ROWS"], dtype=torch.float32)
    heads, incoming, values = as_tokens(heads), _at_most(MAX_GRADIENTS, gradients), _at_most(MAX_GRADIENTS_OF_V, of_v)
    tensors = (*incoming, heads, cos, sin, gain, result, partial, *values, d_v)
    strides = [0 if x is None else x.stride(0) for x in (*incoming, heads, *values)]
    _turn_back[programs,](*tensors, rows, *strides, result.stride(1), tokens, **shape, num_warps=WARPS)
    return None if gain is None else column_sums(partial.view(-1, count))


def _at_most(count: int, gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """Return `count` gradients (B*T, H, D) of the same sum, the surplus added up; None where there are fewer."""
    few = [as_tokens(x) for x in gradients]
    if len(few) > count:
        surplus = torch.stack(few[count - 1 :]).sum(0, dtype=torch.float32)
        few[count - 1 :] = [surplus.to(few[0].dtype)]
    return [*few, *[None] * (count - len(few))]


def _contiguous(gain: Tensor | None) -> Tensor | None:
    return None if gain is None else gain.contiguous()


def _constants(heads: Tensor, cos: Tensor, *, tile: int, normalize: bool) -> dict[str, Any]:
    """Return what the kernels are compiled for."""
    size, pairs = heads.shape[3], next_power_of_2(ceil_div(heads.shape[3], 2))
    sizes = {"HEADS": heads.shape[2], "SIZE": size, "HALF": cos.shape[-1], "PAIRS": pairs}
    return {"EPS": EPS, "NORMALIZE": normalize, **sizes, "ROWS": max(1, tile // (2 * pairs))}
