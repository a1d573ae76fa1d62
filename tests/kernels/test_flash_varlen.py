"""PyTorch's own varlen_attn as golf calls it, whatever its version."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from golf.kernels.flash_ops import open_varlen
from tests.kernels.test_attention import segment_attention
from tests.kernels.test_flash_ops import BOUNDS, further, inputs, segments


def varlen_of_2_10(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    is_causal: bool = False, return_aux: None = None,
) -> Tensor:  # fmt: skip
    assert is_causal
    return varlen_by_formula(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)


def varlen_of_2_11(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, return_aux: None = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    assert window_size == (-1, 0)
    return varlen_by_formula(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)


def varlen_of_2_13(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int,
    *, return_aux: None = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False, seqused_k: None = None, block_table: None = None, num_splits: int | None = None,
) -> Tensor:  # fmt: skip
    assert window_size == (-1, 0)
    assert enable_gqa
    assert cu_seq_k is not None
    return varlen_by_formula(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)


def varlen_by_formula(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Tensor:
    assert torch.equal(cu_q, cu_k)
    assert max_q == max_k == 2048
    return segment_attention(q[None].double(), k[None].double(), v[None].double(), cu_q.tolist())[0].to(q.dtype)


@pytest.mark.parametrize("version", [varlen_of_2_10, varlen_of_2_11, varlen_of_2_13])
def test_every_pytorch_is_asked_for_causal_grouped_segments(
    version: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=version))
    q, k, v = inputs()
    out = open_varlen()(q, k, v, **segments())
    expected = segment_attention(q.double(), k.double(), v.double(), BOUNDS)
    torch.testing.assert_close(out.double(), expected, rtol=2**-7, atol=1e-6)


def test_k_and_v_that_come_again_get_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=varlen_of_2_13))
    q, k, v = (x.requires_grad_() for x in inputs())
    pairs = further(k, v, 2)
    out = open_varlen()(q, k, v, **segments(), again=pairs)
    found = torch.autograd.grad(out.sum(), [k, v, *pairs[0], *pairs[1]], allow_unused=True)
    assert [x is None for x in found] == [False, False, True, True, True, True]


def test_this_pytorch_takes_what_its_varlen_is_given() -> None:
    pytest.importorskip("torch.nn.attention.varlen", reason="PyTorch before 2.10")
    with FakeTensorMode():
        q, kv = torch.empty(2, 23, 6, 16).bfloat16(), torch.empty(2, 23, 2, 16).bfloat16()
        out = open_varlen()(q, kv, kv, cu_seqlens=torch.empty(8, dtype=torch.int32), max_seqlen=2048)
    assert out.shape == (2, 23, 6, 16)


def test_tensors_that_it_does_not_take_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=varlen_of_2_13))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        open_varlen()(*inputs(torch.float32), **segments())
