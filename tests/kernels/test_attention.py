"""Attention against one softmax a segment, written out in float64."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from golf.kernels.attention import attention


def segment_attention(q: Tensor, k: Tensor, v: Tensor, bounds: list[int]) -> Tensor:
    """Softmax of q k / sqrt(D) over a segment's earlier tokens, head by head."""
    shape, heads, group = q.shape, q.shape[2], q.shape[2] // k.shape[2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out = torch.zeros_like(q)
    for start, stop in pairwise(bounds):
        for head in range(heads):
            keys, values = k[start:stop, head // group], v[start:stop, head // group]
            scores = q[start:stop, head] @ keys.T / q.shape[-1] ** 0.5
            later = torch.ones(stop - start, stop - start).triu(1).bool()
            out[start:stop, head] = scores.masked_fill(later, -torch.inf).softmax(-1) @ values
    return out.view(shape)


def inputs(rows: int, tokens: int, heads: int, kv_heads: int, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(rows, tokens, count, dim) for count in (heads, kv_heads, kv_heads)]
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v


CASES = {
    "one segment of 3": (1, 3, 1, 1, [0, 3], 3),
    "one segment of 423, grouped heads": (1, 423, 4, 2, [0, 423], 423),
    "segments of one token": (1, 5, 2, 1, [0, 1, 2, 5], 3),
    "two rows": (2, 23, 6, 2, [0, 7, 23, 24, 46], 22),
    "bound above every length": (1, 23, 4, 4, [0, 7, 23], 64),
    "padded boundaries": (2, 9, 4, 2, [0, 4, 9, 18, 18, 18, 18], 9),
}


@pytest.mark.parametrize("case", CASES)
def test_each_segment_is_an_attention_of_its_own(case: str) -> None:
    rows, tokens, heads, kv_heads, bounds, longest = CASES[case]
    q, k, v = inputs(rows, tokens, heads, kv_heads)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    out = attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=longest)
    torch.testing.assert_close(out, segment_attention(q, k, v, bounds), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_plain_loop(case: str) -> None:
    rows, tokens, heads, kv_heads, bounds, longest = CASES[case]
    q, k, v = leaves = tuple(x.requires_grad_() for x in inputs(rows, tokens, heads, kv_heads))
    incoming = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    found = torch.autograd.grad(attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=longest), leaves, incoming)
    expected = torch.autograd.grad(segment_attention(q, k, v, bounds), leaves, incoming)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_k_and_v_that_come_again_are_not_read() -> None:
    q, k, v = inputs(2, 23, 6, 2)
    cu_seqlens = torch.tensor([0, 7, 23, 46], dtype=torch.int32)
    more = [(torch.full_like(k, torch.nan), torch.full_like(v, torch.nan)) for _ in range(2)]
    found, expected = (attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=23, again=x) for x in (more, ()))
    assert torch.equal(found, expected)


def test_a_segment_never_sees_another_not_even_bit_by_bit() -> None:
    q, k, v = (x.float() for x in inputs(1, 23, 4, 2))
    cu_seqlens = torch.tensor([0, 7, 23], dtype=torch.int32)
    before = attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=16)
    for x in (q, k, v):
        x[:, :7] += 1
    assert torch.equal(attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=16)[:, 7:], before[:, 7:])


def test_a_segment_longer_than_the_bound_is_refused() -> None:
    q, k, v = inputs(1, 9, 2, 1)
    with pytest.raises(ValueError, match="a segment of 5 tokens exceeds max_seqlen 4"):
        attention(q, k, v, cu_seqlens=torch.tensor([0, 4, 9], dtype=torch.int32), max_seqlen=4)


def test_the_output_keeps_the_dtype_of_bfloat16_inputs() -> None:
    q, k, v = (x.bfloat16() for x in inputs(1, 9, 2, 1))
    out = attention(q, k, v, cu_seqlens=torch.tensor([0, 4, 9], dtype=torch.int32), max_seqlen=5)
    expected = segment_attention(q.double(), k.double(), v.double(), [0, 4, 9])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)  # bfloat16 keeps 8 bits of each factor
