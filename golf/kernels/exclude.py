"""Exclusive self-attention: a token's output may not point along its own value (parameter-golf PR #287); with a gate.

B rows, T tokens, H query heads, K key/value heads, D head size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from golf.kernels.jit import ceil_div, jit, next_power_of_2, tl
from golf.kernels.turn_kernels import as_tokens

EPS = 1e-12  # a shorter value counts as one of this length
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEADS = 2**30  # of all tokens: they are counted in 32 bits, their channels in 64

# Tuned on an H200; what is near takes within 3 % of it.
FORWARD_TILE = 2048  # channels of the values a program reads
BACKWARD_TILE = 1024
WARPS = 4


def plain_exclude(y: Tensor, v: Tensor, gates: Tensor | None) -> Tensor:
    """Return (y - (y . v^) v^) * gate with v^ = v / |v| of the same token and key/value head, in float32.

    y (B, T, H, D), v (B, T, K, D) of H/K query heads each, gates (B, T, H); the result has the dtype of y.
    """
    grouped: Tensor = y.float().unflatten(2, (v.shape[2], -1))  # (B, T, K, H/K, D)
    direction = F.normalize(v.float(), dim=-1, eps=EPS)[:, :, :, None, :]
    along = (grouped * direction).sum(-1, keepdim=True)
    rest = (grouped - along * direction).flatten(2, 3)
    return (rest if gates is None else rest * gates[..., None]).to(y.dtype)


@jit
def _exclude(
    y: "Any",  # (N, K * GROUP, D), N = B * T
    v: "Any",  # (N, K, D)
    gates: "Any",  # (N, K * GROUP) or None
    out: "Any",  # (N, K * GROUP, D)
    rows: "Any",  # N * K
    y_stride: "Any",  # of a token
    v_stride: "Any",
    EPS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    channel = tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    valid = row < rows
    inside = valid & (channel < SIZE)
    token, kv_head = (row // KV_HEADS).to(tl.int64), row % KV_HEADS
    value = tl.load(v + token * v_stride + kv_head * SIZE + channel, mask=inside, other=0.0).to(tl.float32)
    direction = value * (1.0 / tl.maximum(tl.sqrt(tl.sum(value * value, axis=1, keep_dims=True)), EPS))
    for member in tl.static_range(GROUP):
        head = kv_head * GROUP + member
        x = tl.load(y + token * y_stride + head * SIZE + channel, mask=inside, other=0.0).to(tl.float32)
        x -= tl.sum(x * direction, axis=1, keep_dims=True) * direction
        slot = row.to(tl.int64) * GROUP + member
        if gates is not None:
            x *= tl.load(gates + slot, mask=valid, other=0.0).to(tl.float32)
        tl.store(out + slot * SIZE + channel, x.to(out.dtype.element_ty), mask=inside)


@jit
def _exclude_back(
    gradient: "Any",  # (N, K * GROUP, D)
    y: "Any",
    v: "Any",  # (N, K, D)
    gates: "Any",  # (N, K * GROUP) or None
    dy: "Any",  # (N, K * GROUP, D)
    dv: "Any",  # (N, K, D)
    d_gates: "Any",  # (N, K * GROUP)
    rows: "Any",  # N * K
    gradient_stride: "Any",  # of a token
    y_stride: "Any",
    v_stride: "Any",
    EPS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    channel = tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    valid = row < rows
    inside = valid & (channel < SIZE)
    token, kv_head = (row // KV_HEADS).to(tl.int64), row % KV_HEADS
    value = tl.load(v + token * v_stride + kv_head * SIZE + channel, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(value * value, axis=1, keep_dims=True))
    inverse = 1.0 / tl.maximum(length, EPS)
    direction = value * inverse
    d_direction = tl.zeros((ROWS, COLUMNS), tl.float32)
    stretch = tl.zeros((ROWS, 1), tl.float32)  # d_direction . direction
    for member in tl.static_range(GROUP):
        offset = (kv_head * GROUP + member) * SIZE + channel
        g = tl.load(gradient + token * gradient_stride + offset, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(y + token * y_stride + offset, mask=inside, other=0.0).to(tl.float32)
        along = tl.sum(x * direction, axis=1, keep_dims=True)
        slot = row.to(tl.int64) * GROUP + member
        if gates is not None:
            d_gate = tl.sum(g * (x - along * direction), axis=1, keep_dims=True)
            tl.store(d_gates + slot, d_gate.to(d_gates.dtype.element_ty), mask=valid)
            g *= tl.load(gates + slot, mask=valid, other=0.0).to(tl.float32)
        g_along = tl.sum(g * direction, axis=1, keep_dims=True)
        d_direction -= g_along * x + along * g
        stretch -= 2.0 * along * g_along
        tl.store(dy + slot * SIZE + channel, (g - g_along * direction).to(dy.dtype.element_ty), mask=inside)
    stretch = tl.where(length >= EPS, stretch, 0.0)  # below it the divisor is a constant
    d_value = (d_direction - stretch * direction) * inverse
    tl.store(dv + row.to(tl.int64) * SIZE + channel, d_value.to(dv.dtype.element_ty), mask=inside)


@torch.library.custom_op("golf::exclude", mutates_args=())
def _exclude_op(y: Tensor, v: Tensor, gates: Tensor | None) -> Tensor:
    out = y.new_empty(y.shape)
    if not y.numel():
        return out
    rows = v.shape[:3].numel()
    shape = _constants(y, v, tile=FORWARD_TILE)
    y, v = as_tokens(y), as_tokens(v)
    gates = gates if gates is None else gates.contiguous()
    grid = ceil_div(rows, shape["ROWS"])
    _exclude[grid,](y, v, gates, out, rows, y.stride(0), v.stride(0), **shape, num_warps=WARPS)
    return out


@torch.library.custom_op("golf::exclude_backward", mutates_args=())
def _exclude_back_op(gradient: Tensor, y: Tensor, v: Tensor, gates: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of y, v and the gates, each in its own's dtype; (0,) without gates."""
    outputs = _empty_gradients(y, v, gates)
    if not y.numel():
        return outputs
    rows = v.shape[:3].numel()
    shape = _constants(y, v, tile=BACKWARD_TILE)
    gradient, y, v = as_tokens(gradient), as_tokens(y), as_tokens(v)
    gates = gates if gates is None else gates.contiguous()
    grid = ceil_div(rows, shape["ROWS"])
    strides = gradient.stride(0), y.stride(0), v.stride(0)
    _exclude_back[grid,](gradient, y, v, gates, *outputs, rows, *strides, **shape, num_warps=WARPS)
    return outputs


def _empty_gradients(y: Tensor, v: Tensor, gates: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    d_gates = y.new_empty(0) if gates is None else gates.new_empty(gates.shape)
    return y.new_empty(y.shape), v.new_empty(v.shape), d_gates


def _constants(y: Tensor, v: Tensor, *, tile: int) -> dict[str, Any]:
    """Return what the kernels are compiled for."""
    count, size = v.shape[2:]
    columns = next_power_of_2(size)
    sizes = {"KV_HEADS": count, "GROUP": y.shape[2] // count, "SIZE": size, "COLUMNS": columns}
    return {"EPS": EPS, **sizes, "ROWS": max(1, tile // columns)}


@_exclude_op.register_fake
def _exclude_fake(y: Tensor, v: Tensor, gates: Tensor | None) -> Tensor:
    return y.new_empty(y.shape)


@_exclude_back_op.register_fake
def _exclude_back_fake(gradient: Tensor, y: Tensor, v: Tensor, gates: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(y, v, gates)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    y, v, gates = ctx.saved_tensors
    dy, dv, d_gates = _exclude_back_op(gradient, y, v, gates)
    return dy, dv, None if gates is None else d_gates


_exclude_op.register_autograd(_backward, setup_context=_save)


def fused_exclude(y: Tensor, v: Tensor, gates: Tensor | None) -> Tensor:
    """Do what `plain_exclude` does in one pass, computed in float32 and rounded once.

    The tokens of y and v (float32, bfloat16, float16) may be slices of longer rows. Gradients of all three, contiguous;
    no second derivatives (RuntimeError). Raises ValueError if shapes or dtypes do not fit.
    """
    _check(y, v, gates)
    out: Tensor = _exclude_op(y, v, gates)
    return out


def _check(y: Tensor, v: Tensor, gates: Tensor | None) -> None:
    given = [y, v] if gates is None else [y, v, gates]
    if any(x.dtype not in DTYPES for x in given):
        raise ValueError(f"y, v, gates are {[x.dtype for x in given]}; the kernel takes float32, bfloat16 and float16")
    if y.dim() != 4 or v.dim() != 4 or y.shape[:3].numel() > MAX_HEADS:
        raise ValueError(f"y is {tuple(y.shape)}, v {tuple(v.shape)}; (B, T, heads, D), at most {MAX_HEADS} heads")
    batch, tokens, kv_heads, size = v.shape
    if y.shape != (batch, tokens, y.shape[2], size) or kv_heads == 0 or y.shape[2] % kv_heads:
        raise ValueError(f"v {tuple(v.shape)} does not fit y {tuple(y.shape)}")
    if gates is not None and gates.shape != y.shape[:3]:
        raise ValueError(f"gates are {tuple(gates.shape)}; y {tuple(y.shape)} needs {tuple(y.shape[:3])}")
