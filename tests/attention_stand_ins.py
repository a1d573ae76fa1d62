"""Forms of attention for tests, where there is no FlashAttention: one of static shapes, and one of gradients apart."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    again: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Attend through a mask over all tokens: slow, but the host reads no lengths, as it does in the plain form."""
    tokens = q.shape[0] * q.shape[1]
    place = torch.arange(tokens, device=q.device)
    segment = torch.searchsorted(cu_seqlens, place, right=True)
    mask = (segment[:, None] == segment) & (place[:, None] >= place)
    flat_q, flat_k, flat_v = (x.flatten(0, 1).transpose(0, 1)[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(flat_q, flat_k, flat_v, attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1).reshape(q.shape)


def apart(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the form that gives each query head of a group a pair of k and v, and so gradients, of its own."""

    def attention_apart(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens: Tensor,
        max_seqlen: int,
        again: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor:
        pairs = [(k, v), *again]
        assert len(pairs) == q.shape[2] // k.shape[2]
        members = [q[:, :, i :: len(pairs)] for i in range(len(pairs))]
        parts = [
            attend(member, *pair, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
            for member, pair in zip(members, pairs, strict=True)
        ]
        return torch.stack(parts, dim=3).flatten(2, 3)

    return attention_apart
