"""Heads on their way into attention: RMS norm, rotary embedding (Su et al. 2021, arXiv:2104.09864), gain; in one pass.

B rows, T tokens, H query heads, K key/value heads, D head size, R turned pairs (2R <= D).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from golf.kernels.jit import ceil_div, jit, next_power_of_2, tl
from golf.kernels.norm import EPS, rms_norm

# Tuned on an H200; what is near takes within 3 % of it.
FORWARD_TILE = 2048  # channels a program
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


class Heads(NamedTuple):
    """What attention and what follows it take."""

    q: Tensor  # (B, T, H, D)
    k: Tensor  # (B, T, K, D)
    v: Tensor  # (B, T, K, D)
    same_v: Tensor  # v, for a second reader: the gradients of both are added up where they are written


def plain_turn_heads(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, *, normalize: bool
) -> Heads:
    """Normalize each head of q (B, T, H, D) and k (B, T, K, D) if asked to, and turn it by its position.

    q is multiplied by its `gain` (H,); v (B, T, K, D) passes. cos and sin (T, 1, R) and the gain are rounded to the
    dtype of the heads, which is the result's.
    """
    turned_k = _turned(k, cos, sin, None, normalize=normalize)
    return Heads(_turned(q, cos, sin, gain, normalize=normalize), turned_k, v, v)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, *, normalize: bool) -> Tensor:
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
    of_v: "Any",  # (N, H, D), v's gradients; None: there are fewer
    of_same_v: "Any",
    d_v: "Any",  # (N, H, D), their sum
    rows: "Any",  # N * H
    gradient_stride: "Any",  # of a token, as all strides
    stride: "Any",
    of_v_stride: "Any",
    of_same_v_stride: "Any",
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
        result = token.to(tl.int64) * result_stride + head * SIZE
        tl.store(d_heads + result + first, (d_u * scale).to(dtype), mask=valid & has_first)
        tl.store(d_heads + result + second, (d_w * scale).to(dtype), mask=valid & has_second)
        if d_v is not None:
            channel = tl.arange(0, 2 * PAIRS)[None, :]
            inside = valid & (channel < SIZE)
            total_v = tl.load(of_v + token.to(tl.int64) * of_v_stride + head * SIZE + channel, mask=inside, other=0.0)
            total_v = total_v.to(tl.float32)
            if of_same_v is not None:
                more = of_same_v + token.to(tl.int64) * of_same_v_stride + head * SIZE
                total_v += tl.load(more + channel, mask=inside, other=0.0).to(tl.float32)
            tl.store(d_v + result + channel, total_v.to(dtype), mask=inside)
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
    of_q: Tensor,
    of_k: Tensor,
    of_v: Sequence[Tensor],
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    gain: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the raw heads from those of the turned ones and the one or two of v.

    They are the queries', keys' and values' heads of one tensor (B, T, H + 2K, D), as one projection had them; then
    float32, the gain's: (H,), or (0,) without one.
    """
    joint, d_gain = _empty_gradients(q, k, gain)
    if not joint.numel():
        return joint, d_gain.zero_()
    d_q, d_k, d_v = joint.split([q.shape[2], k.shape[2], k.shape[2]], dim=2)
    tables = cos.contiguous(), sin.contiguous()
    _launch_back(of_q, q, tables, d_q, _contiguous(gain), d_gain, normalize=normalize)
    _launch_back(of_k, k, tables, d_k, None, None, normalize=normalize, of_v=of_v, d_v=d_v)
    return joint, d_gain


def _launch_back(
    gradient: Tensor,
    heads: Tensor,
    tables: tuple[Tensor, Tensor],
    result: Tensor,
    gain: Tensor | None,
    d_gain: Tensor | None,
    *,
    normalize: bool,
    of_v: Sequence[Tensor] = (),
    d_v: Tensor | None = None,
) -> None:
    """Write the gradient of `heads` into `result` and the gain's into `d_gain`; the sum of v's, `of_v`, into `d_v`."""
    rows, (tokens, count) = heads.shape[:3].numel(), heads.shape[1:3]
    shape = _constants(heads, tables[0], tile=BACKWARD_TILE, normalize=normalize)
    programs = ceil_div(min(ceil_div(rows, shape["ROWS"]), BACKWARD_PROGRAMS), count) * count
    partial = heads.new_empty(0 if gain is None else programs * shape["ROWS"], dtype=torch.float32)
    gradient, heads, *of_v = (as_tokens(x) for x in (gradient, heads, *of_v))
    values = (*of_v, *[None] * (2 - len(of_v)), d_v)
    strides = [0 if x is None else x.stride(0) for x in (gradient, heads, *values[:2])]
    sizes = (rows, *strides, result.stride(1), tokens)
    _turn_back[programs,](gradient, heads, *tables, gain, result, partial, *values, *sizes, **shape, num_warps=WARPS)
    if d_gain is not None and gain is not None:
        torch.sum(partial.view(-1, count), 0, out=d_gain)


def _empty_gradients(q: Tensor, k: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor]:
    joint = q.new_empty(*q.shape[:2], q.shape[2] + 2 * k.shape[2], q.shape[3])
    return joint, q.new_empty(0 if gain is None else q.shape[2], dtype=torch.float32)


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
    of_q: Tensor,
    of_k: Tensor,
    of_v: Sequence[Tensor],
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    gain: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(q, k, gain)


class _TurnHeads(torch.autograd.Function):
    """Keeps the raw heads: their root mean squares are sooner computed again than read."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, normalize: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.normalize = normalize
        ctx.save_for_backward(q, k, cos, sin, gain)
        turned_k = _turn_op(k, cos, sin, None, normalize)
        return _turn_op(q, cos, sin, gain, normalize), turned_k, v.view(v.shape), v.view(v.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, of_q: Tensor | None, of_k: Tensor | None, of_v: Tensor | None, of_same_v: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, cos, sin, gain = ctx.saved_tensors
        of_q = q.new_zeros(q.shape) if of_q is None else of_q
        of_k = k.new_zeros(k.shape) if of_k is None else of_k
        of_values = [x for x in (of_v, of_same_v) if x is not None] or [k.new_zeros(k.shape)]
        joint, d_gain = _turn_back_op(of_q, of_k, of_values, q, k, cos, sin, gain, ctx.normalize)
        by_heads = joint.split([q.shape[2], k.shape[2], k.shape[2]], dim=2)
        return *by_heads, None, None, None if gain is None else d_gain, None


def fused_turn_heads(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, *, normalize: bool
) -> Heads:
    """Do what `plain_turn_heads` does, computed in float32 and rounded once; one read, one write.

    The tokens of the heads (float32, bfloat16, float16) may be slices of longer rows. Their gradients are slices of one
    tensor (B, T, H + 2K, D), so that what projected them from one input can take them as one; the gain has one too, the
    tables have none, and there are no second derivatives (RuntimeError). Raises ValueError if shapes or dtypes do not
    fit.
    """
    _check(q, k, v, cos, sin, gain)
    found: tuple[Tensor, ...] = _TurnHeads.apply(q, k, v, cos, sin, gain, normalize)  # type: ignore[no-untyped-call]
    return Heads(*found)


def _check(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> None:
    dtypes = [q.dtype, k.dtype, v.dtype]
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16) or len(set(dtypes)) > 1:
        raise ValueError(f"heads are {dtypes}; the kernel takes float32, bfloat16 and float16, one for all")
    if any(x.dim() != 4 or x.shape[:3].numel() > MAX_HEADS for x in (q, k, v)):
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise ValueError(f"heads are {shapes}; (B, T, H, D) with B * T * H <= {MAX_HEADS} is needed")
    batch, tokens, count, size = q.shape
    if k.shape != v.shape or k.shape != (batch, tokens, k.shape[2], size):
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} do not fit q {tuple(q.shape)}")
    half = cos.shape[-1]
    if cos.shape != (tokens, 1, half) or sin.shape != cos.shape or 2 * half > size:
        raise ValueError(f"tables {tuple(cos.shape)}, {tuple(sin.shape)} do not fit heads {tuple(q.shape)}")
    if any(table.dtype not in (q.dtype, torch.float32) or table.requires_grad for table in (cos, sin)):
        raise ValueError(f"tables {cos.dtype}, {sin.dtype} must be {q.dtype} or float32, and constant")
    if gain is not None and gain.shape != (count,):
        raise ValueError(f"gain is {tuple(gain.shape)}; {count} heads need ({count},)")
