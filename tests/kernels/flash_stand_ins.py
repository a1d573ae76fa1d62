"""FlashAttention's packages as golf calls them, computed by the formula in float64 on any device.

Names, order and layouts are those of flash-attn-4 4.0.0b36 and of FlashAttention-3's operators as PyTorch 2.11 to 2.13
call them; what the kernels demand of addresses, strides and dtypes is asserted.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

FLASH3_FORWARD = (
    "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new=None, Tensor(v_new!)? v_new=None, Tensor? q_v=None,"
    " Tensor(out!)? out=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None,"
    " Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None,"
    " Tensor? page_table=None, Tensor? kv_batch_idx=None, Tensor? leftpad_k=None, Tensor? rotary_cos=None,"
    " Tensor? rotary_sin=None, Tensor? seqlens_rotary=None, Tensor? q_descale=None, Tensor? k_descale=None,"
    " Tensor? v_descale=None, float? softmax_scale=None, bool is_causal=False, int window_size_left=-1,"
    " int window_size_right=-1, int attention_chunk=0, float softcap=0.0, bool is_rotary_interleaved=False,"
    " Tensor? scheduler_metadata=None, int num_splits=0, bool? pack_gqa=None, int sm_margin=0)"
    " -> (Tensor(out!), Tensor, Tensor, Tensor)"
)
FLASH3_BACKWARD = (
    "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(dq!)? dq=None,"
    " Tensor(dk!)? dk=None, Tensor(dv!)? dv=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None,"
    " Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None,"
    " float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, int window_size_right=-1,"
    " float softcap=0.0, bool deterministic=False, int sm_margin=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def flash4_forward(
    q: Tensor, k: Tensor, v: Tensor, *, out: Tensor, lse: Tensor, softmax_scale: float, causal: bool, **bounds: Any
) -> tuple[Tensor | None, ...]:
    demand(q, k, v, out)
    assert causal
    assert lse.dtype == torch.float32
    for result, exact in zip((out, lse), attend(q, k, v, one_of(**bounds), softmax_scale), strict=True):
        result.copy_(exact)
    return out, lse, None, None, None


def flash4_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    dout: Tensor,
    lse: Tensor,
    *,
    softmax_scale: float,
    causal: bool,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    **bounds: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    demand(q, k, v, out, dout, dq, dk, dv)
    assert causal
    exact = attend_back(q, k, v, out, dout, lse, one_of(**bounds), softmax_scale)
    for result, gradient in zip((dq, dk, dv), exact, strict=True):
        result.copy_(gradient)
    return dq, dk, dv


def demand(*tensors: Tensor) -> None:
    """Fail where the kernels would: rows must be contiguous, addresses and strides multiples of 16 bytes."""
    assert {x.dtype for x in tensors} in ({torch.bfloat16}, {torch.float16})
    for x in tensors:
        assert x.stride(-1) == 1
        assert all(step and step * x.element_size() % 16 == 0 for step in x.stride()[:-1]), x.stride()
        assert x.data_ptr() % 16 == 0


def one_of(*, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int) -> Tensor:
    """Return the boundaries, which are those of queries and of keys."""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert cu_seqlens_q.dtype == torch.int32
    assert max_seqlen_q == max_seqlen_k == 2048
    return cu_seqlens_q


def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output (T, H, D) and the log-sum-exp (H, T) of every score row, in float64."""
    q, k, v, group = q.double(), k.double(), v.double(), q.shape[1] // k.shape[1]
    out, lse = torch.zeros_like(q), torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=q.dtype)
    for tokens, head, scores in score_blocks(q, k, cu_seqlens, scale):
        lse[head, tokens] = scores.logsumexp(-1)
        out[tokens, head] = scores.softmax(-1) @ v[tokens, head // group]
    return out, lse


def attend_back(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, d_out: Tensor, lse: Tensor, cu_seqlens: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients from the saved output and log-sum-exp, as the kernels do (FlashAttention-2, section 3.1)."""
    q, k, v, out, d_out, lse = (x.double() for x in (q, k, v, out, d_out, lse))
    dq, dk, dv, group = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), q.shape[1] // k.shape[1]
    for tokens, head, scores in score_blocks(q, k, cu_seqlens, scale):
        pair = head // group
        weights = (scores - lse[head, tokens, None]).exp()
        d_weights = d_out[tokens, head] @ v[tokens, pair].T
        d_scores = weights * (d_weights - (d_out[tokens, head] * out[tokens, head]).sum(-1, keepdim=True)) * scale
        dv[tokens, pair] += weights.T @ d_out[tokens, head]
        dq[tokens, head] = d_scores @ k[tokens, pair]
        dk[tokens, pair] += d_scores.T @ q[tokens, head]
    return dq, dk, dv


def score_blocks(q: Tensor, k: Tensor, cu_seqlens: Tensor, scale: float) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield each segment's tokens and each head with its causal scores, -inf where a token may not look."""
    for start, stop in pairwise(cu_seqlens.tolist()):
        tokens, future = slice(start, stop), torch.ones(stop - start, stop - start).triu(1).bool()
        for head in range(q.shape[1] if stop > start else 0):
            scores = q[tokens, head] @ k[tokens, head * k.shape[1] // q.shape[1]].T * scale
            yield tokens, head, scores.masked_fill(future, -torch.inf)


def place_module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """Let `name` and its packages be importable."""
    parent, _, _ = name.rpartition(".")
    if parent:
        place_module(monkeypatch, parent)
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def hide_modules(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let modules look as if they were not installed, also where they are."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def place_flash4(monkeypatch: pytest.MonkeyPatch) -> None:
    place_module(
        monkeypatch, "flash_attn.cute.interface", _flash_attn_fwd=flash4_forward, _flash_attn_bwd=flash4_backward
    )


@contextmanager
def placed_flash3(
    monkeypatch: pytest.MonkeyPatch, *, forward: str = FLASH3_FORWARD, backward: str = FLASH3_BACKWARD
) -> Iterator[None]:
    """Let FlashAttention-3's module be importable and its operators registered while the context is open."""
    if torch._C._dispatch_has_kernel("flash_attn_3::fwd"):
        pytest.skip("FlashAttention-3 itself is loaded: its operators cannot be registered twice")
    place_module(monkeypatch, "flash_attn_interface")
    with torch.library._scoped_library("flash_attn_3", "FRAGMENT") as library:
        library.define(forward)
        library.define(backward)
        library.impl("fwd", flash3_forward, "CompositeExplicitAutograd")
        library.impl("bwd", flash3_backward, "CompositeExplicitAutograd")
        yield


def flash3_forward(*given: Any) -> tuple[Tensor, ...]:
    named = name_arguments(torch.ops.flash_attn_3.fwd, given)
    q, k, v = (named[name] for name in "qkv")
    assert named["num_splits"] == 1
    assert named["pack_gqa"] is False
    assert named["window_size_left"] == named["window_size_right"] == -1
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32).t()
    flash4_forward(q, k, v, out=out, lse=lse, **shared(named))
    return out, lse, q.new_empty(0), q.new_empty(0)


def flash3_backward(*given: Any) -> tuple[Tensor, ...]:
    named = name_arguments(torch.ops.flash_attn_3.bwd, given)
    q, k, v, out, dout, lse = (named[name] for name in ("q", "k", "v", "out", "dout", "softmax_lse"))
    assert q.shape == k.shape  # else it adds up in memory
    assert lse.is_contiguous()
    flash4_backward(q, k, v, out, dout, lse, dq=named["dq"], dk=named["dk"], dv=named["dv"], **shared(named))
    return tuple(q.new_empty(0) for _ in range(5))


def name_arguments(operator: Any, given: tuple[Any, ...]) -> dict[str, Any]:
    """Return an operator's arguments by name; the dispatcher hands them over in order, without trailing defaults."""
    arguments = operator.default._schema.arguments
    defaults = {argument.name: argument.default_value for argument in arguments}
    return defaults | dict(zip(defaults, given, strict=False))


def shared(named: dict[str, Any]) -> dict[str, Any]:
    """Return what both packages are told, as the newer one calls it."""
    names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "softmax_scale")
    return {name: named[name] for name in names} | {"causal": named["is_causal"]}
