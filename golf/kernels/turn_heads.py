"""Heads on their way into attention: RMS norm, rotary embedding (Su et al. 2021, arXiv:2104.09864), gain; in one pass.

B rows, T tokens, H query heads, K key/value heads, D head size, R turned pairs (2R <= D).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from golf.kernels.norm import rms_norm
from golf.kernels.turn_kernels import launch_turn, launch_turn_back

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
    again: tuple[tuple[Tensor, Tensor], ...]  # k and v, for each further query head of a group, likewise; or nothing


def plain_turn_heads(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, *, normalize: bool
) -> Heads:
    """Normalize each head of q (B, T, H, D) and k (B, T, K, D) if asked to, and turn it by its position.

    q is multiplied by its `gain` (H,); v (B, T, K, D) passes. cos and sin (T, 1, R) and the gain are rounded to the
    dtype of the heads, which is the result's.
    """
    turned_k = _turned(k, cos, sin, None, normalize=normalize)
    return Heads(_turned(q, cos, sin, gain, normalize=normalize), turned_k, v, v, ())


def _turned(heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, *, normalize: bool) -> Tensor:
    x = rms_norm(heads) if normalize else heads
    x = rotate(x, cos.to(x.dtype), sin.to(x.dtype))
    return x if gain is None else x * gain.to(x.dtype)[:, None]


@torch.library.custom_op("golf::turn_heads", mutates_args=())
def _turn_op(heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, normalize: bool) -> Tensor:
    out = heads.new_empty(heads.shape)
    if heads.numel():
        launch_turn(heads, (cos, sin), out, gain, normalize=normalize)
    return out


@torch.library.custom_op("golf::turn_heads_backward", mutates_args=())
def _turn_back_op(
    of_q: Tensor,
    of_k: Sequence[Tensor],
    of_v: Sequence[Tensor],
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    gain: Tensor | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the raw heads from those of the turned ones and of v, one or more of k and of v.

    They are the queries', keys' and values' heads of one tensor (B, T, H + 2K, D), as one projection had them; then
    float32, the gain's: (H,), or (0,) without one.
    """
    joint, no_gain = _empty_gradients(q, k, gain)
    if not joint.numel():
        return joint, no_gain.zero_()
    d_q, d_k, d_v = joint.split([q.shape[2], k.shape[2], k.shape[2]], dim=2)
    tables = cos, sin
    d_gain = launch_turn_back([of_q], q, tables, d_q, gain, normalize=normalize)
    launch_turn_back(of_k, k, tables, d_k, None, normalize=normalize, of_v=of_v, d_v=d_v)
    return joint, no_gain if d_gain is None else d_gain


def _empty_gradients(q: Tensor, k: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor]:
    joint = q.new_empty(*q.shape[:2], q.shape[2] + 2 * k.shape[2], q.shape[3])
    return joint, q.new_empty(0 if gain is None else q.shape[2], dtype=torch.float32)


@_turn_op.register_fake
def _turn_fake(heads: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, normalize: bool) -> Tensor:
    return heads.new_empty(heads.shape)


@_turn_back_op.register_fake
def _turn_back_fake(
    of_q: Tensor,
    of_k: Sequence[Tensor],
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
    ) -> tuple[Tensor, ...]:
        """Return q, k, v, the same v, then k and v in turns."""
        ctx.set_materialize_grads(False)
        ctx.normalize = normalize
        ctx.save_for_backward(q, k, cos, sin, gain)
        turned_k = _turn_op(k, cos, sin, None, normalize)
        further = range(q.shape[2] // k.shape[2] - 1)
        again = [x.view(x.shape) for _ in further for x in (turned_k, v)]
        return _turn_op(q, cos, sin, gain, normalize), turned_k, v.view(v.shape), v.view(v.shape), *again

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_q: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, cos, sin, gain = ctx.saved_tensors
        of_k, of_v, of_same_v, *again = others
        of_q = q.new_zeros(q.shape) if of_q is None else of_q
        of_keys = [x for x in (of_k, *again[::2]) if x is not None] or [k.new_zeros(k.shape)]
        of_values = [x for x in (of_v, *again[1::2], of_same_v) if x is not None] or [k.new_zeros(k.shape)]
        joint, d_gain = _turn_back_op(of_q, of_keys, of_values, q, k, cos, sin, gain, ctx.normalize)
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
    q, k, v, same_v, *again = found
    return Heads(q, k, v, same_v, tuple(zip(again[::2], again[1::2], strict=True)))


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
