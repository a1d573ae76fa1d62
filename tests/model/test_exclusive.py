"""Exclusive self-attention: orthogonal to the token's own value, and equal to the form with repeated heads."""

import torch
from torch import Tensor

from golf.kernels.attention import attention
from golf.kernels.exclude import plain_exclude


def case(rows: int = 2, tokens: int = 23, heads: int = 6, kv_heads: int = 2, dim: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(rows, tokens, heads, dim, generator=generator)
    return y, torch.randn(rows, tokens, kv_heads, dim, generator=generator)


def test_the_output_is_orthogonal_to_the_value_of_its_head() -> None:
    y, v = case()
    along = (plain_exclude(y, v, None) * v.repeat_interleave(3, dim=2)).sum(-1)
    assert float(along.abs().max()) < 1e-5


def test_the_output_is_that_of_the_form_with_repeated_values() -> None:
    y, v = case()
    value = v.repeat_interleave(3, dim=2).double()  # query heads 3j .. 3j+2 share head j
    expected = y.double() - (y * value).sum(-1, keepdim=True) / value.square().sum(-1, keepdim=True) * value
    torch.testing.assert_close(plain_exclude(y, v, None).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_length_of_the_value_does_not_matter() -> None:
    y, v = case()
    torch.testing.assert_close(plain_exclude(y, 100 * v, None), plain_exclude(y, v, None))


def test_nothing_is_left_at_the_first_token_of_a_segment() -> None:
    y, v = case()
    cu_seqlens = torch.tensor([0, 7, 23, 46], dtype=torch.int32)
    k = torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
    out = plain_exclude(attention(y, k, v, cu_seqlens=cu_seqlens, max_seqlen=23), v, None)
    size = out.flatten(0, 1).norm(dim=-1)
    assert float(size[[0, 7, 23]].max()) < 1e-6
    assert float(size[[1, 8, 24]].min()) > 1e-2


def test_a_zero_value_removes_nothing() -> None:
    y, v = case()
    assert torch.equal(plain_exclude(y, torch.zeros_like(v), None), y)


def test_the_step_is_made_in_float32() -> None:
    y, v = case()
    out = plain_exclude(y.bfloat16(), v.bfloat16(), None)
    assert torch.equal(out, plain_exclude(y.bfloat16().float(), v.bfloat16().float(), None).bfloat16())
