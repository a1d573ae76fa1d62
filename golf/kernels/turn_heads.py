"""Heads on their way into attention: RMS norm, rotary embedding (Su et al. 2021, arXiv:2104.09864), gain; in one pass.

B rows, T tokens, H heads, D head size, R turned pairs (2R <= D).
"""

from typing import Any

import torch
from torch import Tensor

from golf.kernels.jit import ceil_div, jit, next_power_of_2, tl
from golf.kernels.norm import EPS, rms_norm

# Not yet tuned on a GPU.
FORWARD_TILE = 4096  # channels a program
BACKWARD_TILE = 2048  # channels a program and turn of its loop
BACKWARD_PROGRAMS = 8 * 132  # at most, if H divides it; each writes one row of partial sums
WARPS = 4
MAX_HEADS = 2**30  # of all tokens: they are counted in 32 bits, their channels in 64


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channels (j, j + dims/2) of x (B, T, H, D) by the position's angle; other channels pass.

    cos and sin are (T, 1, dims/2) in the dtype of x.
    """
    half = cos.shape[-1]
    u, w, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([u * cos + w * sin, w * cos - u * sin, rest], dim=-1)


def plain_turn_heads(heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, *, normalize: bool) -> Tensor:
    """Normalize each of the heads (B, T, H, D) if asked to, turn it by its position, multiply it by its gain (H,).

    cos and sin (T, 1, R) and the gain are rounded to the dtype of `heads`, which is the result's.
    """
    x = rms_norm(heads) if normalize else heads
    x = rotate(x, cos.to(x.dtype), sin.to(x.dtype))
    return x if gain is None else x * gain.to(x.dtype)[:, None]


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
def _turn_back(
    gradient: "Any",  # (N, H, D)
    heads: "Any",  # (N, H, D)
    cos: "Any",  # (T, R)
    sin: "Any",
    gain: "Any",  # (H,) or None
    d_heads: "Any",  # (N, H, D)
    partial: "Any",  # (programs * ROWS,), entry i of head i % H
    rows: "Any",  # N * H
    gradient_stride: "Any",
    stride: "Any",
    tokens: "Any",  # T
    EPS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Walk the heads in steps that are a multiple of H rows: a program's i-th row stays with one head."""
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
        incoming = gradient + token.to(tl.int64) * gradient_stride + head * SIZE
        source = heads + token.to(tl.int64) * stride + head * SIZE
        g_u = tl.load(incoming + first, mask=valid & has_first, other=0.0).to(tl.float32)
        g_w = tl.load(incoming + second, mask=valid & has_second, other=0.0).to(tl.float32)
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
        target = d_heads + row.to(tl.int64) * SIZE
        tl.store(target + first, (d_u * scale).to(dtype), mask=valid & has_first)
        tl.store(target + second, (d_w * scale).to(dtype), mask=valid & has_second)
    if gain is not None:
        tl.store(partial + lane, total)


@torch.library.custom_op("golf::turn_heads", mutates_args=())
def _turn_op(heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, normalize: bool) -> Tensor:
    out = heads.new_empty(heads.shape)
    if not heads.numel():
        return out
    rows, tokens = heads.shape[:3].numel(), heads.shape[1]
    shape = _constants(heads, cos, tile=FORWARD_TILE, normalize=normalize)
    tensors = as_tokens(heads), cos.contiguous(), sin.contiguous(), _contiguous(gain)
    grid = ceil_div(rows, shape["ROWS"])
    _turn[grid,](*tensors, out, rows, tensors[0].stride(0), tokens, **shape, num_warps=WARPS)
    return out


@torch.library.custom_op("golf::turn_heads_backward", mutates_args=())
def _turn_back_op(
    gradient: Tensor, heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the heads and, float32, of the gain: (H,), or (0,) without one."""
    rows, (tokens, count) = heads.shape[:3].numel(), heads.shape[1:3]
    d_heads = heads.new_empty(heads.shape)
    if not heads.numel():
        return d_heads, heads.new_zeros(0 if gain is None else count, dtype=torch.float32)
    shape = _constants(heads, cos, tile=BACKWARD_TILE, normalize=normalize)
    tensors = as_tokens(gradient), as_tokens(heads), cos.contiguous(), sin.contiguous(), _contiguous(gain)
    programs = ceil_div(min(ceil_div(rows, shape["ROWS"]), BACKWARD_PROGRAMS), count) * count
    partial = heads.new_empty(0 if gain is None else programs * shape["ROWS"], dtype=torch.float32)
    strides = tensors[0].stride(0), tensors[1].stride(0)
    _turn_back[programs,](*tensors, d_heads, partial, rows, *strides, tokens, **shape, num_warps=WARPS)
    return d_heads, partial if gain is None else partial.view(-1, count).sum(0)


def _contiguous(gain: Tensor | None) -> Tensor | None:
    return None if gain is None else gain.contiguous()


def _constants(heads: Tensor, cos: Tensor, *, tile: int, normalize: bool) -> dict[str, Any]:
    """Return what the kernels are compiled for."""
    size, pairs = heads.shape[3], next_power_of_2(ceil_div(heads.shape[3], 2))
    sizes = {"HEADS": heads.shape[2], "SIZE": size, "HALF": cos.shape[-1], "PAIRS": pairs}
    return {"EPS": EPS, "NORMALIZE": normalize, **sizes, "ROWS": max(1, tile // (2 * pairs))}


@_turn_op.register_fake
def _turn_fake(heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, normalize: bool) -> Tensor:
    return heads.new_empty(heads.shape)


@_turn_back_op.register_fake
def _turn_back_fake(
    gradient: Tensor, heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor]:
    d_gain = heads.new_empty(0 if gain is None else heads.shape[2], dtype=torch.float32)
    return heads.new_empty(heads.shape), d_gain


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the raw heads: their root mean squares are sooner computed again than read."""
    *tensors, ctx.normalize = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    heads, cos, sin, gain = ctx.saved_tensors
    d_heads, d_gain = _turn_back_op(gradient, heads, cos, sin, gain, ctx.normalize)
    return d_heads, None, None, None if gain is None else d_gain, None


_turn_op.register_autograd(_backward, setup_context=_save)


def fused_turn_heads(heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, *, normalize: bool) -> Tensor:
    """Do what `plain_turn_heads` does, computed in float32 and rounded once; one read, one write.

    The tokens of `heads` (float32, bfloat16, float16) may be slices of longer rows. Gradients of the heads (contiguous)
    and of the gain; the tables have none, and there are no second derivatives (RuntimeError). Raises ValueError if
    shapes or dtypes do not fit.
    """
    _check(heads, cos, sin, gain)
    out: Tensor = _turn_op(heads, cos, sin, gain, normalize)
    return out


def _check(heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> None:
    if heads.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"heads are {heads.dtype}; the kernel takes float32, bfloat16 and float16")
    if heads.dim() != 4 or heads.shape[:3].numel() > MAX_HEADS:
        raise ValueError(f"heads are {tuple(heads.shape)}; (B, T, H, D) with B * T * H <= {MAX_HEADS} is needed")
    _, tokens, count, size = heads.shape
    half = cos.shape[-1]
    if cos.shape != (tokens, 1, half) or sin.shape != cos.shape or 2 * half > size:
        raise ValueError(f"tables {tuple(cos.shape)}, {tuple(sin.shape)} do not fit heads {tuple(heads.shape)}")
    if any(table.dtype not in (heads.dtype, torch.float32) or table.requires_grad for table in (cos, sin)):
        raise ValueError(f"tables {cos.dtype}, {sin.dtype} must be {heads.dtype} or float32, and constant")
    if gain is not None and gain.shape != (count,):
        raise ValueError(f"gain is {tuple(gain.shape)}; {count} heads need ({count},)")
