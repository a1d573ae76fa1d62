"""Causal attention inside segments of a packed stream.

B rows, T tokens, H query heads, K key/value heads, D head size, N segments, L longest segment.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor,
    max_seqlen: int,
    again: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Attend causally within each segment, scale 1/sqrt(D); query heads jH/K..(j+1)H/K-1 share key/value head j.

    q (B, T, H, D), k and v (B, T, K, D); `cu_seqlens` (N+1,) are boundaries over the flattened B*T tokens, no segment
    longer than `max_seqlen`; zero-length segments at the end are padding. Returns (B, T, H, D).

    `again` is k and v once more, a pair for each further query head of a group (H/K - 1 pairs), or nothing. A form that
    finds the gradients of k and v per query head gives k and v those of a group's first head, and each pair those of a
    further one: whoever made the pairs adds them up. Other forms, as this one, leave `again` unread, without gradients.
    """
    batch, tokens, heads, _ = q.shape
    slots = _segment_slots(cu_seqlens, batch * tokens, max_seqlen)  # (N, L)
    q_pad, k_pad, v_pad = (_gather(x, slots) for x in (q, k, v))  # (N, heads, L, D)
    grouped = heads != k.shape[2]
    out = F.scaled_dot_product_attention(q_pad, k_pad, v_pad, is_causal=True, enable_gqa=grouped)  # (N, H, L, D)
    flat = q.new_empty(batch * tokens + 1, heads, q.shape[3])
    flat = flat.index_copy(0, slots.flatten(), out.transpose(1, 2).flatten(0, 1))  # the last row collects the padding
    return flat[:-1].view_as(q)


def _gather(x: Tensor, slots: Tensor) -> Tensor:
    """Lay x (B, T, heads, D) out by segment (N, heads, L, D); slots beyond the stream read zeros."""
    return F.pad(x.flatten(0, 1), (0, 0, 0, 0, 0, 1))[slots].transpose(1, 2)


def _segment_slots(cu_seqlens: Tensor, total: int, max_seqlen: int) -> Tensor:
    """Index of each segment's tokens (N, L) in the flattened stream; `total` marks padding.

    Padding follows a segment's tokens, so causality keeps it out of every real token's sum.
    """
    lengths = cu_seqlens.diff()
    if (longest := int(lengths.max())) > max_seqlen:  # its last tokens would come out as uninitialized memory
        raise ValueError(f"a segment of {longest} tokens exceeds max_seqlen {max_seqlen}")
    keep = lengths > 0
    starts, lengths = cu_seqlens[:-1][keep, None].long(), lengths[keep, None]
    offsets = torch.arange(max_seqlen, device=cu_seqlens.device)
    return torch.where(offsets < lengths, starts + offsets, total)
