"""Cross-entropy of soft-capped logits (soft cap: Gemma 2, arXiv:2408.00118)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def softcap(logits: Tensor, cap: float) -> Tensor:
    """Return cap * tanh(logits / cap) in float32."""
    return cap * torch.tanh(logits.float() / cap)


def softcapped_cross_entropy(logits: Tensor, targets: Tensor, *, cap: float) -> Tensor:
    """Per-token loss in nats, float32, of the shape of `targets`; `logits` (..., V) are not yet capped."""
    losses = F.cross_entropy(softcap(logits, cap).flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view_as(targets)
