"""FlashAttention's kernels for packed segments, as operators that torch.compile does not look into.

FlashAttention-4 is `flash_attn.cute` (package flash-attn-4), FlashAttention-3 comes from several packages
(`flash3_builds.py`), and PyTorch carries FlashAttention-2 as `varlen_attn`. None is imported before its
`open_…` is called. What they compute is `golf.kernels.attention.attention`, with which tests compare them; but none
looks at the lengths of the segments, because that would make the host wait for the GPU. Gradients are summed by atomic
additions, so their last bits differ from run to run.

B rows, T tokens, H query heads, K key/value heads, D head size, N segments.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from golf.kernels.flash3_builds import find_flash3

DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256
ALIGNMENT = 8  # elements: the copy engine takes addresses and strides in multiples of 16 bytes

_FLASH4 = "flash_attn.cute.interface"


def open_flash4() -> Callable[..., Tensor]:
    """Import FlashAttention-4 and return its form of `attention`.

    Raises what the import raises, and TypeError if its functions do not take what golf gives them.
    """
    module = import_module(_FLASH4)
    settings = _settings(None, 0, 64, causal="causal")
    signature(module._flash_attn_fwd).bind("q", "k", "v", out=None, lse=None, **settings)
    signature(module._flash_attn_bwd).bind("q", "k", "v", "out", "d_out", "lse", dq=None, dk=None, dv=None, **settings)
    return flash4_attention


def flash4_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    again: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Do what `attention` does with FlashAttention-4, in bfloat16 or float16, D a multiple of 8.

    Heads may lie in longer rows. A segment longer than `max_seqlen` goes unnoticed. Gradients of q, k and v are
    contiguous; there are no second derivatives (RuntimeError). Raises ValueError if shapes or dtypes do not fit.
    """
    _check(q, k, v, cu_seqlens)
    return _attend(_flash4, q, k, v, cu_seqlens, max_seqlen)


def open_flash3() -> Callable[..., Tensor]:
    """Load FlashAttention-3 and return its form of `attention`.

    Raises ImportError if it is not installed, what the loading raises, and AttributeError or TypeError if it registers
    no operators or others than golf knows.
    """
    build = find_flash3()
    if build is None:
        raise ImportError("no package with FlashAttention-3 is installed")
    build.load()
    settings = _settings(None, 0, 64, causal="is_causal")
    _require_arguments(torch.ops.flash_attn_3.fwd, "q", "k", "v", "num_splits", "pack_gqa", *settings)
    _require_arguments(torch.ops.flash_attn_3.bwd, "dout", "q", "out", "softmax_lse", "dq", "dk", "dv", *settings)
    return flash3_attention


def flash3_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    again: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Do what `flash4_attention` does with FlashAttention-3, which finds the gradients of k and v per query head.

    With `again` nobody adds them up here. Raises ValueError too if it holds neither nothing nor all pairs.
    """
    _check(q, k, v, cu_seqlens)
    further = q.shape[2] // k.shape[2] - 1
    if len(again) not in (0, further):
        heads = f"{q.shape[2]} query heads of {k.shape[2]} key/value heads"
        raise ValueError(f"{heads} take k and v again 0 or {further} times, not {len(again)}")
    return _attend(_flash3, q, k, v, cu_seqlens, max_seqlen, [x for pair in again for x in pair])


def open_varlen() -> Callable[..., Tensor]:
    """Return PyTorch's `varlen_attn` as a form of `attention`; of the dtypes, shapes and errors of `flash4_attention`.

    Raises ImportError before PyTorch 2.10. How causality is asked for, and whether grouped heads must be announced,
    depends on its version.
    """
    varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn
    known = signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        options["enable_gqa"] = True

    def varlen_attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens: Tensor,
        max_seqlen: int,
        again: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor:
        _check(q, k, v, cu_seqlens)
        flat = (x.flatten(0, 1) for x in (q, k, v))
        out: Tensor = varlen_attn(*flat, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **options)
        return out.view(q.shape)

    return varlen_attention


@torch.library.custom_op("golf::flash4", mutates_args=())
def _flash4(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
    """Attend over q (T, H, D), k and v (T, K, D); also return the scores' log-sum-exp (H, T), float32."""
    out, lse = _empty_results(q)
    if q.numel():
        forward = import_module(_FLASH4)._flash_attn_fwd
        settings = _settings(cu_seqlens, max_seqlen, q.shape[2], causal="causal")
        forward(*map(_aligned, (q, k, v)), out=out, lse=lse, **settings)
    return out, lse


@torch.library.custom_op("golf::flash4_backward", mutates_args=())
def _flash4_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = gradients = _empty_gradients(q, k, v)
    if q.numel():
        backward = import_module(_FLASH4)._flash_attn_bwd
        settings = _settings(cu_seqlens, max_seqlen, q.shape[2], causal="causal")
        backward(*map(_aligned, (q, k, v, out, d_out)), lse, dq=dq, dk=dk, dv=dv, **settings)
    return gradients


@torch.library.custom_op("golf::flash3", mutates_args=())
def _flash3(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, again: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """See `_flash4`; `again` (B, T, K, D), k and v in turns, carries gradients and is not read."""
    if not q.numel():
        return _empty_results(q)
    settings = _settings(cu_seqlens, max_seqlen, q.shape[2], causal="is_causal")
    # Splits (0 would let it choose) spread long rows over blocks and add the parts up afterwards, and packing puts the
    # query heads of a key's head into one tile: this batch fills the GPU without (0.398 instead of 0.420 ms, H200).
    out, lse, *_ = torch.ops.flash_attn_3.fwd(*map(_aligned, (q, k, v)), num_splits=1, pack_gqa=False, **settings)
    return out, lse.contiguous()


@torch.library.custom_op("golf::flash3_backward", mutates_args=())
def _flash3_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    apart: bool,
) -> list[Tensor]:
    """Return the gradients of q, k and v, by one call for each of the query heads that share a key's head.

    With `apart` k's and v's are those of a group's first head, and the others' follow; otherwise they are the sums.
    A call for all would add the heads' gradients of k and v up in float32 in memory: filled with zeros, added to by
    atomic operations and converted in passes of their own (1.27 ms where the calls take 1.07 and the sums 0.07, H200).
    """
    if not q.numel():
        return _flash3_gradients(q, k, v, apart=apart)
    group = q.shape[1] // k.shape[1]
    dq, *parts = _flash3_gradients(q, k, v, apart=True)
    settings = _settings(cu_seqlens, max_seqlen, q.shape[2], causal="is_causal")
    d_out, q, k, v, out = map(_aligned, (d_out, q, k, v, out))
    for member in range(group):
        heads = slice(member, None, group)
        given = d_out[:, heads], q[:, heads], k, v, out[:, heads], lse[heads].contiguous()
        dk, dv = parts[2 * member : 2 * member + 2]
        torch.ops.flash_attn_3.bwd(*given, dq=dq[:, heads], dk=dk, dv=dv, **settings)
    return [dq, *parts] if apart else [dq, _sum(parts[::2]), _sum(parts[1::2])]


def _flash3_gradients(q: Tensor, k: Tensor, v: Tensor, *, apart: bool) -> list[Tensor]:
    """Return empty gradients as `_flash3_backward` does."""
    dq, dk, dv = _empty_gradients(q, k, v)
    further = q.shape[1] // k.shape[1] - 1 if apart else 0
    return [dq, dk, dv, *(part for _ in range(further) for part in _empty_gradients(q, k, v)[1:])]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """Add up tensors, rounding once."""
    if len(parts) == 1:
        return parts[0]
    return torch.add(*parts) if len(parts) == 2 else torch.stack(list(parts)).sum(0)


def _empty_results(q: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _empty_gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _settings(cu_seqlens: Tensor | None, max_seqlen: int, head_dim: int, *, causal: str) -> dict[str, Any]:
    """Return what both directions are told besides tensors; `causal` is what the package calls that switch."""
    bounds = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
    lengths = {"max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
    return {**bounds, **lengths, "softmax_scale": head_dim**-0.5, causal: True}


def _aligned(x: Tensor) -> Tensor:
    """Return x (T, heads, D) itself if the copy engine can read it, or else a copy."""
    *outer, inner = x.stride()
    steps = (x.storage_offset(), *outer)
    if inner == 1 and all(outer) and all(step % ALIGNMENT == 0 for step in steps):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, ctx.max_seqlen = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _backward(ctx: Any, d_out: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return *_flash4_backward(d_out, *ctx.saved_tensors, ctx.max_seqlen), None, None


def _save_flash3(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *others, again = inputs
    _save(ctx, tuple(others), output)
    ctx.shapes = [x.shape for x in again]


def _backward_flash3(ctx: Any, d_out: Tensor, _: None) -> tuple[Tensor | list[Tensor] | None, ...]:
    dq, dk, dv, *more = _flash3_backward(d_out, *ctx.saved_tensors, ctx.max_seqlen, len(ctx.shapes) > 0)
    return dq, dk, dv, None, None, [x.view(shape) for x, shape in zip(more, ctx.shapes, strict=True)]


for _operator in (_flash4, _flash3):
    _operator.register_fake(lambda q, *_: _empty_results(q))
_flash4_backward.register_fake(lambda _, q, k, v, *__: _empty_gradients(q, k, v))
_flash3_backward.register_fake(lambda _, q, k, v, *others: _flash3_gradients(q, k, v, apart=others[-1]))
_flash4.register_autograd(_backward, setup_context=_save)
_flash3.register_autograd(_backward_flash3, setup_context=_save_flash3)


def _attend(
    operator: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *again: Sequence[Tensor],
) -> Tensor:
    out: Tensor = operator(*(x.flatten(0, 1) for x in (q, k, v)), cu_seqlens, max_seqlen, *again)[0]
    return out.view(q.shape)


def _check(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> None:
    given = [q.dtype, k.dtype, v.dtype]
    if q.dtype not in DTYPES or len(set(given)) > 1:
        raise ValueError(f"q, k, v are {given}; flash attention takes bfloat16 or float16, one for all three")
    if cu_seqlens.dtype != torch.int32:
        raise ValueError(f"cu_seqlens is {cu_seqlens.dtype}; flash attention takes int32")
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if any(x.dim() != 4 for x in (q, k, v)) or k.shape != v.shape or q.shape[:2] != k.shape[:2]:
        raise ValueError(f"{shapes}: flash attention takes (B, T, H, D) and twice (B, T, K, D)")
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"{shapes}: {q.shape[2]} query heads do not share {k.shape[2]} key/value heads evenly")
    if q.shape[3] != k.shape[3] or q.shape[3] % 8 or not 0 < q.shape[3] <= MAX_HEAD_DIM:
        raise ValueError(f"{shapes}: flash attention takes one head size, a multiple of 8 up to {MAX_HEAD_DIM}")


def _require_arguments(operator: Any, *names: str) -> None:
    known = {argument.name for argument in operator.default._schema.arguments}
    if missing := [name for name in names if name not in known]:
        raise TypeError(f"{operator} takes no {', '.join(missing)}")
