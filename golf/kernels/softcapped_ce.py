"""Cross-entropy of soft-capped logits (soft cap: Gemma 2, arXiv:2408.00118)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """Return cap * tanh(logits / cap) in float32; the logits themselves without a cap."""
    return logits.float() if cap is None else cap * torch.tanh(logits.float() / cap)


def softcapped_cross_entropy(logits: Tensor, targets: Tensor, *, cap: float | None, rounds: bool = False) -> Tensor:
    """Per-token loss in nats, float32, of the shape of `targets`; `logits` (..., V) are not yet capped.

    If it `rounds`, the capped logits pass through the dtype of `logits`, as in the published evaluations.
    """
    capped = softcap(logits, cap)
    if rounds:
        capped = capped.to(logits.dtype).float()
    losses = F.cross_entropy(capped.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view_as(targets)
